// Compares one table of kernels with the scalar one, bit for bit, over odd sizes, misaligned starts and extreme values.
//
//   kernels --isa NAME [--seed N]     exit status 0: equal; 1: not; 77: this machine or build lacks NAME
//
// Every buffer ends where its data ends, at a page that faults, so that a read or write outside is seen. With `slack`
// it ends a few elements earlier instead, for starts that no vector register is aligned with. NaN is left out of all
// inputs.
#include "kernels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "cpu.h"
#include "failure.h"
#include "guarded.h"
#include "tensor_type.h"

namespace {

using namespace mobillama;

std::mt19937_64 random_bits;
long comparisons = 0;

int any(int low, int high) { return low + static_cast<int>(random_bits() % static_cast<uint64_t>(high - low + 1)); }
float any_float(float size) { return size * (static_cast<float>(random_bits() >> 40) * 0x1p-23f - 1.0f); }

// The same input for both tables; `got` and `want` start out equal, so that what must not be written is compared too.
template <class T>
struct Pair {
  Guarded<T> got, want;
  Pair(size_t count, size_t slack) : got(count, slack), want(count, slack) {
    for (size_t i = 0; i < count * sizeof(T); i++)
      reinterpret_cast<uint8_t*>(got.data())[i] = reinterpret_cast<uint8_t*>(want.data())[i] =
          static_cast<uint8_t>(i % 61);
  }
  void compare(const std::string& what) const {
    comparisons++;
    for (size_t i = 0; i < got.size(); i++) {
      const double found = static_cast<double>(got.data()[i]), expected = static_cast<double>(want.data()[i]);
      if (std::isnan(expected)) {
        std::printf("%s: the reference has NaN at %zu; the test must choose other values\n", what.c_str(), i);
        std::exit(1);
      }
      if (std::memcmp(got.data() + i, want.data() + i, sizeof(T)) == 0) continue;
      std::printf("%s: element %zu of %zu is %.9g, the scalar kernel has %.9g\n", what.c_str(), i, got.size(), found,
                  expected);
      std::exit(1);
    }
  }
};

template <class... Numbers>
std::string label(const char* name, Numbers... numbers) {
  std::string text = name;
  ((text += ' ' + std::to_string(numbers)), ...);
  return text;
}

// ---- multiply ----

enum class Fill { Random, Low, High };  // codes all 0, all at their largest

uint16_t any_scale() {
  const uint16_t odd[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x7bff};  // zeros, subnormals, the largest
  return any(0, 15) == 0 ? odd[any(0, 4)] : float_to_half(any_float(0.1f));
}

void set_scales(uint8_t* at) {
  for (int row = 0; row < kPanelRows; row++) {
    const uint16_t scale = any_scale();
    std::memcpy(at + 2 * row, &scale, 2);
  }
}

size_t panel_bytes(Layout layout, int cols) {
  const size_t c = size_t(cols);
  switch (layout) {
    case Layout::F32: return 64 * c;
    case Layout::F16:
    case Layout::BF16: return 32 * c;
    case Layout::Q4: return c / 32 * 288;
    case Layout::Q5: return c / 32 * 352;
    case Layout::Q8: return c / 32 * 544;
    case Layout::Q3K: return c / 256 * 1824;
    case Layout::Q6K: return c / 256 * 3360;
  }
  return 0;
}

void fill_weights(Layout layout, Fill fill, uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    data[i] = fill == Fill::Random ? static_cast<uint8_t>(random_bits()) : fill == Fill::Low ? 0 : 255;
  if (layout == Layout::F32)
    for (size_t i = 0; i < bytes; i += 4) {
      const float value = any_float(any(0, 9) == 0 ? 1e-38f : 1.0f);
      std::memcpy(data + i, &value, 4);
    }
  if (layout == Layout::F16 || layout == Layout::BF16)
    for (size_t i = 0; i < bytes; i += 2) {
      const float value = any_float(1.0f);
      const uint16_t half =
          layout == Layout::F16 ? any_scale() : static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
      std::memcpy(data + i, &half, 2);
    }
  const size_t tile = layout == Layout::Q4 ? 288 : layout == Layout::Q5 ? 352 : 544;
  if (layout == Layout::Q4 || layout == Layout::Q5 || layout == Layout::Q8)
    for (size_t i = 0; i < bytes; i += tile) set_scales(data + i + tile - 32);
  if (layout == Layout::Q3K || layout == Layout::Q6K)
    for (size_t i = 0; i < bytes; i += layout == Layout::Q3K ? 1824 : 3360) {
      set_scales(data + i);
      if (fill == Fill::Low) std::memset(data + i + 32, 0x80, 256);
    }
}

struct Inputs {
  Guarded<float> x, scale;
  Guarded<int8_t> q;
  Guarded<int32_t> sum, half_sum;
  Activations view;

  Inputs(int n, int cols, bool whole_groups, Fill fill, size_t slack)
      : x(size_t(n) * size_t(cols), slack),
        scale(size_t(n) * size_t(cols / kGroup), slack),
        q(size_t(n) * size_t(cols), slack),
        sum(size_t(n) * size_t(cols / kGroup), slack),
        half_sum(size_t(n) * 2 * size_t(cols / kGroup), slack) {
    for (size_t i = 0; i < x.size(); i++) {
      x.data()[i] = any_float(2.0f);
      q.data()[i] = static_cast<int8_t>(fill == Fill::Random ? any(-127, 127) : fill == Fill::Low ? -127 : 127);
    }
    if (whole_groups)
      for (size_t i = 0; i < half_sum.size(); i++) {
        int32_t total = 0;
        for (size_t j = 0; j < 16; j++) total += q.data()[16 * i + j];
        half_sum.data()[i] = total;
      }
    for (size_t i = 0; i < sum.size(); i++) {
      sum.data()[i] = half_sum.data()[2 * i] + half_sum.data()[2 * i + 1];
      scale.data()[i] = any_float(0.1f);
    }
    view = {cols, x.data(), q.data(), scale.data(), sum.data(), half_sum.data()};
  }
};

void compare_multiply(const Kernels& table, Layout layout, int cols, int n, Fill codes, Fill inputs) {
  constexpr int kPanels = 3;
  const size_t slack = size_t(any(0, 3));
  Guarded<uint8_t> data(kPanels * panel_bytes(layout, cols), slack);
  fill_weights(layout, codes, data.data(), data.size());
  Inputs x(n, cols, !is_float(layout), inputs, slack);
  const int ranges[][3] = {{0, 3, kWhole}, {0, 3, 0},      {0, 3, kWhole / 2},  // begin, end, resident
                           {1, 2, 0},      {2, 3, kWhole}, {1, 1, 0}};
  const auto [begin, end, resident] = std::to_array(ranges[n == 1 ? comparisons % 6 : any(0, 5)]);
  const Panels w{layout,  kPanels * kPanelRows - any(0, 15), cols, kPanels, panel_bytes(layout, cols), data.data(),
                 resident};
  const size_t stride = size_t(kPanels * kPanelRows + any(0, 5));
  Pair<float> y(size_t(n - 1) * stride + kPanels * kPanelRows, slack);
  const int index = static_cast<int>(layout);
  scalar_kernels()->multiply[index](w, begin, end, x.view, n, y.want.data(), stride);
  Soon soon;
  soon.at = data.data(), soon.end = data.data() + any(0, 4) * 64;
  const uint8_t* const end_of_soon = soon.end;
  if (any(0, 1)) x.view.soon = &soon;
  table.multiply[index](w, begin, end, x.view, n, y.got.data(), stride);
  if (soon.end != end_of_soon || soon.at < data.data() || soon.at > soon.end) {
    std::printf("multiply fetched past the end of what it was told\n");
    std::exit(1);
  }
  y.compare(label("multiply layout, cols, n, begin, end, resident:", index, cols, n, begin, end, resident));
}

void compare_all_multiply(const Kernels& table) {
  for (int index = 0; index < kLayouts; index++) {
    const Layout layout = static_cast<Layout>(index);
    const std::vector<int> sizes = is_float(layout)        ? std::vector{1, 2, 3, 5, 30, 64, 67, 256}
                                   : layout >= Layout::Q3K  ? std::vector{256, 512, 2048}
                                                           : std::vector{32, 64, 96, 256, 512, 2048};
    for (const int cols : sizes) {
      for (const int n : {1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64})
        if (cols * n <= 8192) compare_multiply(table, layout, cols, n, Fill::Random, Fill::Random);
      if (is_float(layout)) continue;
      for (const int n : {1, 4})
        for (const Fill codes : {Fill::Low, Fill::High})
          for (const Fill inputs : {Fill::Low, Fill::High, Fill::Random})
            compare_multiply(table, layout, cols, n, codes, inputs);
    }
  }
}

// ---- vectors ----

void compare_quantize(const Kernels& table) {
  for (const int group : {16, 20, 32, 48, 64, 80, 96, 128, 256})
    for (int round = 0; round < 12; round++) {
      const int groups = any(1, 5), count = group * groups;
      const size_t slack = size_t(any(0, 3));
      Guarded<float> x(size_t(count), slack);
      for (int g = 0; g < groups; g++) {
        const int kind = any(0, 5);  // zeros; ties of the rounding (x * inverse is a half); values of a size
        const float size = std::array{0.0f, 0.0f, 1e-38f, 1e-30f, 1e30f, 3.0f}[size_t(kind)];
        for (int i = 0; i < group; i++) {
          const float tie = i == 0 ? 127.0f : static_cast<float>(any(-126, 125)) + 0.5f;
          x.data()[g * group + i] = kind == 0 ? (i % 2 == 0 ? 0.0f : -0.0f) : kind == 1 ? tie : any_float(size);
        }
      }
      const size_t n = size_t(groups);
      Pair<int8_t> q(size_t(count), slack);
      Pair<float> scale(n, slack);
      Pair<int32_t> sum(n, slack), half_sum(2 * n, slack);
      const bool halves = round % 3 != 0;
      scalar_kernels()->quantize(x.data(), count, group, q.want.data(), scale.want.data(), sum.want.data(),
                                 halves ? half_sum.want.data() : nullptr);
      table.quantize(x.data(), count, group, q.got.data(), scale.got.data(), sum.got.data(),
                     halves ? half_sum.got.data() : nullptr);
      const std::string what = label("quantize group, groups:", group, groups);
      q.compare(what), scale.compare(what), sum.compare(what), half_sum.compare(what);
    }
}

float any_size() {  // of every order of magnitude, and the places where exp is cut off
  const float odd[] = {0.0f, -0.0f, 1e-40f, -1e-40f, 87.0f, -87.0f, 88.0f, -88.0f, 104.0f, -104.0f, 1e30f, -1e30f};
  return any(0, 7) == 0 ? odd[any(0, 11)] : any_float(std::exp2(static_cast<float>(any(-60, 8))));
}

void compare_vectors(const Kernels& table) {
  const Kernels& scalar = *scalar_kernels();
  for (int round = 0; round < 400; round++) {
    const int n = round < 100 ? round + 1 : any(1, 700);
    const size_t count = size_t(n), slack = size_t(any(0, 3));
    Guarded<float> x(count, slack), weight(count, slack);
    for (size_t i = 0; i < count; i++) x.data()[i] = any_float(3.0f), weight.data()[i] = any_float(2.0f);
    if (round % 10 == 0) std::fill_n(x.data(), count, 0.0f);

    Pair<float> normed(count, slack);
    scalar.rms_norm(x.data(), weight.data(), n, 1e-5f, normed.want.data());
    table.rms_norm(x.data(), weight.data(), n, 1e-5f, normed.got.data());
    normed.compare(label("rms_norm n:", n));

    Pair<float> gate(count, slack);
    for (size_t i = 0; i < count; i++) gate.got.data()[i] = gate.want.data()[i] = any_size();
    scalar.swiglu(gate.want.data(), weight.data(), n);
    table.swiglu(gate.got.data(), weight.data(), n);
    gate.compare(label("swiglu n:", n));

    const int half = n % 70 + 1;
    Guarded<float> cosine(size_t(half), slack), sine(size_t(half), slack);
    Pair<float> pairs(2 * size_t(half), slack);
    for (int i = 0; i < half; i++) {
      cosine.data()[i] = any_float(1.0f), sine.data()[i] = any(0, 9) == 0 ? 0.0f : any_float(1.0f);
      for (const int at : {i, i + half}) pairs.got.data()[at] = pairs.want.data()[at] = any_float(2.0f);
    }
    scalar.rotate(pairs.want.data(), cosine.data(), sine.data(), half);
    table.rotate(pairs.got.data(), cosine.data(), sine.data(), half);
    pairs.compare(label("rotate half:", half));
  }
}

// Every half-precision number, the point half-way to the next, and the floats beside both; then any bits.
void compare_to_half(const Kernels& table) {
  std::vector<float> values;
  for (uint32_t half = 0; half < 0x7c00; half++) {
    const float low = half_to_float(static_cast<uint16_t>(half));
    const float high = half == 0x7bff ? 65536.0f : half_to_float(static_cast<uint16_t>(half + 1));
    for (const float value : {low, low + (high - low) / 2})
      for (const float near : {value, std::nextafter(value, INFINITY), std::nextafter(value, -INFINITY)})
        values.push_back(half % 2 ? -near : near);
  }
  for (int i = 0; i < 100000; i++)
    if (const float value = std::bit_cast<float>(static_cast<uint32_t>(random_bits())); !std::isnan(value))
      values.push_back(value);
  values.insert(values.end(), {INFINITY, -INFINITY, 0.0f, -0.0f, 65519.0f, 65520.0f, -65520.0f, 3e38f});
  for (size_t at = 0; at < values.size();) {
    const size_t count = std::min(values.size() - at, size_t(any(1, 100))), slack = size_t(any(0, 3));
    Guarded<float> x(count, slack);
    std::copy_n(values.data() + at, count, x.data());
    Pair<uint16_t> out(count, slack);
    scalar_kernels()->to_half(x.data(), static_cast<int>(count), out.want.data());
    table.to_half(x.data(), static_cast<int>(count), out.got.data());
    out.compare(label("to_half, from value:", at));
    at += count;
  }
}

// ---- attention ----

// Blocks of so many bytes, each with its scales at its beginning.
void fill_cache(int type, uint8_t* data, size_t bytes, size_t width, size_t block, size_t scales, bool extreme) {
  const auto put = [&](size_t at, auto value) { std::memcpy(data + at, &value, sizeof value); };
  for (size_t at = 0; at < bytes;) {
    const bool scale = at % block < scales;
    if (scale) put(at, any_float(0.05f));
    if (type == 0) put(at, any_scale());
    if (type == 1 && !scale) put(at, static_cast<uint8_t>(extreme ? (at % 3 == 0 ? 1 : 255) : any(1, 255)));
    if (type == 2) put(at, any_float(2.0f));
    at += scale ? 4 : width;
  }
}

// Pieces of memory that kernels may fetch beside their work, and how many of its lines they fetched.
struct Wanted {
  static constexpr int kPieces = 12, kLines = 40, kApart = 64;
  std::vector<uint8_t> memory = std::vector<uint8_t>(size_t(64) * kApart * kPieces);
  Soon soon;
  Wanted() {
    soon.length = 64 * kLines, soon.stride = 64 * kApart, soon.more = kPieces - 1;
    soon.at = memory.data(), soon.end = soon.at + soon.length;
  }
  int fetched() const {
    const auto at = (soon.at - memory.data()) / 64;
    if (at % kApart > kLines || soon.more < 0) {
      std::printf("attention fetched memory that lies between what it was told of\n");
      std::exit(1);
    }
    return static_cast<int>(at / kApart * kLines + at % kApart);
  }
  // After a step that read so many bytes, where lines are whole for every loop.
  void expect(const Kernels& table, size_t bytes, int before) const {
    const int want = &table == scalar_kernels() ? 0 : std::min(static_cast<int>(bytes / 64), kPieces * kLines - before);
    if (fetched() - before == want) return;
    std::printf("attention fetched %d lines beside; it read %d\n", fetched() - before, want);
    std::exit(1);
  }
};

void compare_attention(const Kernels& table, int type, int head_dim, int length) {
  const Kernels& scalar = *scalar_kernels();
  const size_t slack = size_t(any(0, 3)), dim = size_t(head_dim), used = size_t(length);
  const size_t whole = (used + 15) / 16 * 16, width = type == 0 ? 2 : type == 1 ? 1 : 4;
  const bool extreme = any(0, 3) == 0;
  const size_t scales = type == 1 ? 64 : 0, block = scales + 16 * dim * width;
  const size_t key_bytes = whole / 16 * block, rows_of_last = (used - 1) % 16 + 1;
  const size_t value_bytes = (used - 1) / 16 * block + scales + rows_of_last * dim * width;
  Guarded<uint8_t> keys(key_bytes, slack * width), values(value_bytes, slack * width);
  const uint8_t* keys_end = keys.data() + key_bytes;
  fill_cache(type, keys.data(), key_bytes, width, block, scales, extreme);
  fill_cache(type, values.data(), value_bytes, width, block, scales, extreme);
  Guarded<float> x(dim, slack);
  Guarded<int8_t> q(dim, slack);
  int32_t sum = 0;
  for (size_t d = 0; d < dim; d++) {
    x.data()[d] = any_float(1.0f);
    q.data()[d] = static_cast<int8_t>(extreme ? (d % 5 == 0 ? -127 : 127) : any(-127, 127));
    sum += q.data()[d];
  }
  const Query query{x.data(), q.data(), 0.011f, sum};
  const std::string sizes = label(", type, head_dim, length:", type, head_dim, length);

  Pair<float> scores(whole, slack);
  Soon nothing;
  Wanted wanted;
  scalar.scores[type](query, keys_end, head_dim, length, scores.want.data(), nothing);
  table.scores[type](query, keys_end, head_dim, length, scores.got.data(), wanted.soon);
  const int of_keys = wanted.fetched();
  if (head_dim % 64 == 0) wanted.expect(table, key_bytes, 0);
  scores.compare("scores" + sizes);

  Pair<float> total(1, slack);
  total.want.data()[0] = scalar.softmax(scores.want.data(), length);
  total.got.data()[0] = table.softmax(scores.got.data(), length);
  scores.compare("softmax" + sizes), total.compare("the sum of softmax" + sizes);

  Guarded<float> p(used, slack);
  std::copy_n(scores.want.data(), used, p.data());
  Pair<float> out(dim, slack);
  const float factor = 1.0f / total.want.data()[0];
  scalar.mix[type](p.data(), values.data(), head_dim, length, factor, out.want.data(), nothing);
  table.mix[type](p.data(), values.data(), head_dim, length, factor, out.got.data(), wanted.soon);
  if (head_dim % 64 == 0) wanted.expect(table, value_bytes, of_keys);
  out.compare("mix" + sizes);
}

void compare_all_attention(const Kernels& table) {
  for (int type = 0; type < kKvTypes; type++)
    for (const int head_dim : {8, 16, 20, 48, 64, 80, 128}) {
      for (int length = 1; length <= 40; length++) compare_attention(table, type, head_dim, length);
      for (const int length : {64, 100, 1000}) compare_attention(table, type, head_dim, length);
    }
}

// The reference's exp, through softmax of {0, x}, against the C library's in double precision.
void check_exponential(const Kernels& table) {
  for (int i = 0; i < 1000000; i++) {
    alignas(64) float scores[16] = {0.0f, -87.0f * static_cast<float>(i) / 1000000.0f};
    const double exact = std::exp(static_cast<double>(scores[1]));
    table.softmax(scores, 2);
    comparisons++;
    if (std::abs(scores[1] - exact) < 1e-7 * exact) continue;
    std::printf("exp at step %d is %.9g, exactly %.9g\n", i, static_cast<double>(scores[1]), exact);
    std::exit(1);
  }
}

}  // namespace

int main(int count, char** arguments) {
  std::string isa;
  uint64_t seed = 1;
  for (int i = 1; i + 1 < count; i += 2) {
    if (std::string_view(arguments[i]) == "--isa") isa = arguments[i + 1];
    if (std::string_view(arguments[i]) == "--seed") seed = std::strtoull(arguments[i + 1], nullptr, 10);
  }
  setenv("MOBILLAMA_ISA", isa.c_str(), 1);
  const Kernels* table = nullptr;
  try {
    table = &choose_kernels();
  } catch (const Failure& failure) {
    std::printf("%s\n", failure.what());
    return 77;
  }
  if (table->name != isa) {
    std::printf("asked for the kernels '%s', was given '%s'\n", isa.c_str(), table->name);
    return 1;
  }
  random_bits.seed(seed);
  std::printf("%s, seed %llu\n", table->name, static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  if (isa == "scalar") {
    check_exponential(*table);
  } else {
    compare_all_multiply(*table);
    compare_quantize(*table);
    compare_vectors(*table);
    compare_to_half(*table);
    compare_all_attention(*table);
  }
  std::printf("%ld comparisons\n", comparisons);
}
