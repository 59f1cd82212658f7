// Mutations of a GGUF draft that know its structure, and of bytes that do not.
#pragma once

#include <cstdint>
#include <string>

#include "seeds.h"

// splitmix64: one number a call, the same on every machine.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t n) { return next() % n; }
  bool one_in(uint64_t n) { return below(n) == 0; }
};

void mutate(Draft& draft, Random& random);
void mutate(std::string& bytes, Random& random);
