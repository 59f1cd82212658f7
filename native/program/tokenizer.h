// The vocabulary inside a GGUF file: text to ids as sentencepiece's byte-fallback BPE makes them, and ids to bytes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.h"

namespace mobillama {

class Tokenizer {
 public:
  // Failure: MOBILLAMA_UNSUPPORTED for a tokenizer of another kind, MOBILLAMA_FORMAT for arrays that do not fit together.
  explicit Tokenizer(const Gguf& gguf);
  // The vocabulary points into its own strings.
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  // The ids at which a text ends: those of eos, eot and eom that the file names, and the list of our own key.
  const std::vector<int32_t>& ends() const { return ends_; }

  // sentencepiece's ids (where the file lists its merges, those of merging in that order). User-defined pieces are found
  // in the text first, from left to right, of those that begin at one place the longest; text that spells a control piece
  // is ordinary text; a byte that is part of no character is read as U+FFFD. Time: n log n of the bytes.
  std::vector<int32_t> encode(std::string_view text) const;

  // As `encode`, with the begin id before and the end id behind it where the file asks for them.
  std::vector<int32_t> encode_prompt(std::string_view text) const;

  // A control piece stands for no text.
  bool is_control(int32_t id) const { return kinds_[check(id)] == Kind::kControl; }
  // The bytes an id stands for, spaces plain. Failure: MOBILLAMA_INVALID for an id outside the vocabulary.
  const std::string& bytes(int32_t id) const { return bytes_[check(id)]; }
  // Whether a text that starts with this id loses its first space.
  bool strips(int32_t id) const { return prefix_ != Prefix::kNone && starts_with_space_[check(id)]; }

 private:
  // Where a space is put before text: never; before a text, whatever begins it; before a text and behind each matched
  // piece; as these two, but never before a space, and in front only of text.
  enum class Prefix { kNone, kStart, kEach, kFirst, kAlways };
  enum class Kind : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  size_t check(int32_t id) const;
  int32_t special_id(const Gguf& gguf, const std::string& key, int32_t usual, Kind kind) const;
  int32_t checked_id(const std::string& key, int64_t id) const;
  void read_ends(const Gguf& gguf);
  void add_piece(size_t id);
  void read_prefix(const Gguf& gguf);
  // A user-defined piece that begins the text; -1 if none does.
  int32_t find_matched(std::string_view text) const;
  void append_part(std::string_view part, bool first, std::vector<int32_t>& ids) const;
  void append_merged(std::string_view view, std::vector<int32_t>& ids) const;
  void read_merges(const std::vector<std::string>& merges);
  const int32_t* find(std::string_view piece) const;
  const float* priority(std::string_view both, size_t left) const;
  void append_ids(std::string_view piece, std::vector<int32_t>& ids) const;

  std::vector<std::string> pieces_, bytes_;
  std::vector<float> scores_;
  std::vector<Kind> kinds_;
  std::vector<bool> starts_with_space_;
  std::unordered_map<std::string_view, int32_t> ids_;  // of normal pieces
  size_t longest_ = 0;                                 // bytes of the longest normal piece
  // Piece << 32 | bytes of its left part -> minus the place in the list of merges; empty where scores say it all.
  std::unordered_map<uint64_t, float> merges_;
  std::vector<int32_t> ends_;
  std::array<int32_t, 256> byte_ids_;                  // -1: there is none
  int32_t begin_id_ = -1, end_id_ = -1, unknown_id_ = -1;
  std::array<std::vector<int32_t>, 256> matched_;  // user-defined pieces by their first byte, the longest first
  int32_t rows_ = 0;                               // of the embedding: pieces, and ids that stand for none
  Prefix prefix_ = Prefix::kEach;
  bool begins_ = true, ends_prompt_ = false;
};

}  // namespace mobillama
