#include "tokenizer.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <queue>
#include <string>

#include "failure.h"
#include "utf8.h"

namespace mobillama {

namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";           // U+2581: a space inside a piece
constexpr std::string_view kUnknownShown = " \xE2\x81\x87 ";  // what sentencepiece writes for the unknown id
constexpr const char* kMoreEnds = "mobillama.end_token_ids";  // our own key
constexpr const char* kPrefixKey = "tokenizer.mobillama.space_prefix";  // our own: where add_space_prefix does not say it
constexpr size_t kMostMerges = size_t(1) << 24;               // places in the list are exact in a float
constexpr size_t kLongestText = size_t(1) << 28;              // bytes; with every one a space, offsets still fit 32 bits

// A run of the text that is one piece so far; a ring of neighbours. An empty one was merged into its left neighbour.
struct Symbol {
  int32_t start, size, before, after;  // bytes; neighbours by index, -1: none
};

// Two neighbours that a piece could replace.
struct Merge {
  float priority;
  int32_t left, right, size;  // size in bytes of both at the time, to know one that came too late
  // The highest priority goes first, the leftmost of equals: then the queue's largest is the next one.
  bool operator<(const Merge& other) const {
    return priority < other.priority || (priority == other.priority && left > other.left);
  }
};

std::vector<Symbol> characters(std::string_view text) {
  std::vector<Symbol> symbols;
  symbols.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const auto size = static_cast<int32_t>(utf8::character_size(text.substr(at)));
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({static_cast<int32_t>(at), size, index - 1, index + 1});
    at += static_cast<size_t>(size);
  }
  if (!symbols.empty()) symbols.back().after = -1;
  return symbols;
}

// The text with a space in front where one is put there, every space as U+2581 and every byte that is part of no character as U+FFFD.
std::string spaced(std::string_view text, bool prefix) {
  std::string out;
  out.reserve(text.size() + text.size() / 4 + kSpace.size());
  if (prefix) out += kSpace;
  for (size_t at = 0; at < text.size();) {
    const size_t size = utf8::character_size(text.substr(at));
    if (size == utf8::kInvalid || size == utf8::kIncomplete) {
      out += utf8::kReplacement;
      at++;
    } else {
      out += text[at] == ' ' ? kSpace : text.substr(at, size);
      at += size;
    }
  }
  return out;
}

}  // namespace

Tokenizer::Tokenizer(const Gguf& gguf) {
  const std::string kind = gguf.text("tokenizer.ggml.model");
  if (kind != "llama") {
    fail(MOBILLAMA_UNSUPPORTED, "tokenizer.ggml.model is '%.40s'; expected 'llama' (byte-fallback BPE): give ids with --ids",
         kind.c_str());
  }
  pieces_ = gguf.texts("tokenizer.ggml.tokens");
  scores_ = gguf.numbers("tokenizer.ggml.scores");
  const std::vector<int32_t> kinds = gguf.integers("tokenizer.ggml.token_type");
  if (pieces_.empty() || scores_.size() != pieces_.size() || kinds.size() != pieces_.size()) {
    fail(MOBILLAMA_FORMAT,
         "the tokenizer has %zu tokens, %zu scores and %zu types; expected equally many, one at least: the file is damaged",
         pieces_.size(), scores_.size(), kinds.size());
  }
  rows_ = size();
  // Rows of the embedding that stand for no piece are no part of the vocabulary.
  while (!pieces_.empty() && kinds[pieces_.size() - 1] == static_cast<int32_t>(Kind::kUnused)) pieces_.pop_back();
  byte_ids_.fill(-1);
  bytes_.resize(pieces_.size());
  kinds_.resize(pieces_.size());
  starts_with_space_.resize(pieces_.size());
  for (size_t id = 0; id < pieces_.size(); id++) {
    if (kinds[id] < 1 || kinds[id] > 6) {
      fail(MOBILLAMA_FORMAT, "token %zu is of type %d; expected 1 to 6: the file is damaged", id, kinds[id]);
    }
    kinds_[id] = static_cast<Kind>(kinds[id]);
    add_piece(id);
  }
  for (std::vector<int32_t>& ids : matched_) {  // of doubled pieces the first counts
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
      return pieces_[static_cast<size_t>(a)].size() > pieces_[static_cast<size_t>(b)].size();
    });
  }
  begin_id_ = special_id(gguf, "tokenizer.ggml.bos_token_id", 1, Kind::kControl);
  end_id_ = special_id(gguf, "tokenizer.ggml.eos_token_id", 2, Kind::kControl);
  unknown_id_ = special_id(gguf, "tokenizer.ggml.unknown_token_id", 0, Kind::kUnknown);
  read_ends(gguf);
  if (gguf.has("tokenizer.ggml.merges")) read_merges(gguf.texts("tokenizer.ggml.merges"));
  read_prefix(gguf);
  // Where a file is silent, other programs put the begin id in front and nothing behind: older files rely on it.
  begins_ = gguf.integer("tokenizer.ggml.add_bos_token", 1) != 0 && begin_id_ >= 0;
  ends_prompt_ = gguf.integer("tokenizer.ggml.add_eos_token", 0) != 0 && end_id_ >= 0;
}

// The id that a key names; of a file without the key, the one usual in such vocabularies, if its piece is of that kind;
// else -1.
int32_t Tokenizer::special_id(const Gguf& gguf, const std::string& key, int32_t usual, Kind kind) const {
  if (gguf.has(key)) return checked_id(key, gguf.integer(key));
  return usual < size() && kinds_[static_cast<size_t>(usual)] == kind ? usual : -1;
}

int32_t Tokenizer::checked_id(const std::string& key, int64_t id) const {
  if (id < 0 || id >= rows_) {
    fail(MOBILLAMA_FORMAT, "%s is %lld; expected 0 to %d: the file is damaged", key.c_str(), static_cast<long long>(id),
         rows_ - 1);
  }
  return static_cast<int32_t>(id);
}

void Tokenizer::read_ends(const Gguf& gguf) {
  if (end_id_ >= 0) ends_.push_back(end_id_);
  for (const char* name : {"eot", "eom"}) {
    const std::string key = std::string("tokenizer.ggml.") + name + "_token_id";
    if (gguf.has(key)) ends_.push_back(checked_id(key, gguf.integer(key)));
  }
  if (!gguf.has(kMoreEnds)) return;
  for (const int32_t id : gguf.integers(kMoreEnds)) ends_.push_back(checked_id(kMoreEnds, id));
}

void Tokenizer::read_prefix(const Gguf& gguf) {
  if (gguf.integer("tokenizer.ggml.add_space_prefix", 1) == 0) {
    prefix_ = Prefix::kNone;
  } else if (gguf.has(kPrefixKey)) {
    static const std::map<std::string, Prefix> names = {{"none", Prefix::kNone},
                                                        {"start", Prefix::kStart},
                                                        {"each", Prefix::kEach},
                                                        {"first", Prefix::kFirst},
                                                        {"always", Prefix::kAlways}};
    const std::string name = gguf.text(kPrefixKey);
    const auto found = names.find(name);
    if (found == names.end()) {
      fail(MOBILLAMA_FORMAT, "%s is '%.40s'; expected none, start, each, first or always: the file is damaged", kPrefixKey,
           name.c_str());
    }
    prefix_ = found->second;
  }
}

void Tokenizer::add_piece(size_t id) {
  const std::string& piece = pieces_[id];
  starts_with_space_[id] = piece.starts_with(kSpace);
  switch (kinds_[id]) {
    case Kind::kControl: return;
    case Kind::kUnknown: bytes_[id] = kUnknownShown; return;
    case Kind::kByte: {
      unsigned value = 0;
      char written[8] = "";
      if (std::sscanf(piece.c_str(), "<0x%2X>", &value) == 1) std::snprintf(written, sizeof written, "<0x%02X>", value);
      if (piece != written) {
        fail(MOBILLAMA_FORMAT, "token %zu, a byte, is '%.40s'; expected <0x00> to <0xFF>: the file is damaged", id,
             piece.c_str());
      }
      byte_ids_[value] = static_cast<int32_t>(id);
      bytes_[id] = std::string(1, static_cast<char>(value));
      return;
    }
    case Kind::kNormal:
      ids_.emplace(piece, static_cast<int32_t>(id));
      longest_ = std::max(longest_, piece.size());
      break;
    case Kind::kUserDefined:
      if (!piece.empty()) matched_[static_cast<unsigned char>(piece[0])].push_back(static_cast<int32_t>(id));
      break;
    case Kind::kUnused: break;
  }
  for (size_t at = 0; at < piece.size();) {
    const bool space = std::string_view(piece).substr(at).starts_with(kSpace);
    bytes_[id] += space ? ' ' : piece[at];
    at += space ? kSpace.size() : 1;
  }
}

size_t Tokenizer::check(int32_t id) const {
  if (id < 0 || id >= size()) {
    fail(MOBILLAMA_INVALID, "id %d is outside the vocabulary; expected 0 to %d", id, size() - 1);
  }
  return static_cast<size_t>(id);
}

std::vector<int32_t> Tokenizer::encode_prompt(std::string_view text) const {
  std::vector<int32_t> ids = encode(text);
  if (begins_) ids.insert(ids.begin(), begin_id_);
  if (ends_prompt_) ids.push_back(end_id_);
  return ids;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  if (text.empty()) return {};
  if (text.size() > kLongestText) {
    fail(MOBILLAMA_INVALID, "the text is %zu bytes long; expected %zu at most: give it in parts", text.size(), kLongestText);
  }
  // sentencepiece looks for its pieces in what is merged, space in front and all; others in the text as it is.
  const std::string whole = prefix_ == Prefix::kStart ? spaced(text, true) : std::string();
  const std::string_view view = prefix_ == Prefix::kStart ? std::string_view(whole) : text;
  std::vector<int32_t> ids;
  size_t begin = 0;
  const auto append_text = [&](size_t end) {
    if (begin < end) append_part(view.substr(begin, end - begin), begin == 0, ids);
  };
  for (size_t at = 0; at < view.size();) {
    const int32_t id = find_matched(view.substr(at));
    if (id < 0) {
      at++;
      continue;
    }
    append_text(at);
    ids.push_back(id);
    begin = at += pieces_[static_cast<size_t>(id)].size();
  }
  append_text(view.size());
  return ids;
}

int32_t Tokenizer::find_matched(std::string_view text) const {
  for (const int32_t id : matched_[static_cast<unsigned char>(text[0])]) {
    if (text.starts_with(pieces_[static_cast<size_t>(id)])) return id;
  }
  return -1;
}

// The ids of text between matched pieces; `first`: it begins the whole text.
void Tokenizer::append_part(std::string_view part, bool first, std::vector<int32_t>& ids) const {
  const bool spaces = part.starts_with(' ') || part.starts_with(kSpace);
  switch (prefix_) {
    case Prefix::kStart: return append_merged(part, ids);
    case Prefix::kNone: return append_merged(spaced(part, false), ids);
    case Prefix::kEach: return append_merged(spaced(part, true), ids);
    case Prefix::kFirst: return append_merged(spaced(part, first && !spaces), ids);
    case Prefix::kAlways: return append_merged(spaced(part, !spaces), ids);
  }
}

void Tokenizer::append_merged(std::string_view view, std::vector<int32_t>& ids) const {
  std::vector<Symbol> symbols = characters(view);

  // Merged pieces lie side by side in the text, so that both together are looked up without being copied.
  std::priority_queue<Merge> queue;
  const auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Symbol& first = symbols[static_cast<size_t>(left)];
    const int32_t size = first.size + symbols[static_cast<size_t>(right)].size;
    const std::string_view both = view.substr(static_cast<size_t>(first.start), static_cast<size_t>(size));
    const float* found = priority(both, static_cast<size_t>(first.size));
    if (found != nullptr) queue.push({*found, left, right, size});
  };
  for (size_t index = 1; index < symbols.size(); index++) {
    consider(static_cast<int32_t>(index) - 1, static_cast<int32_t>(index));
  }
  while (!queue.empty()) {
    const Merge merge = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(merge.left)];
    Symbol& right = symbols[static_cast<size_t>(merge.right)];
    if (left.size == 0 || right.size == 0 || left.size + right.size != merge.size) continue;
    left.size = merge.size;
    left.after = right.after;
    right.size = 0;
    if (left.after >= 0) symbols[static_cast<size_t>(left.after)].before = merge.left;
    consider(left.before, merge.left);
    consider(merge.left, left.after);
  }

  for (int32_t index = 0; index >= 0; index = symbols[static_cast<size_t>(index)].after) {
    const Symbol& symbol = symbols[static_cast<size_t>(index)];
    append_ids(view.substr(static_cast<size_t>(symbol.start), static_cast<size_t>(symbol.size)), ids);
  }
}

const int32_t* Tokenizer::find(std::string_view piece) const {
  if (piece.size() > longest_) return nullptr;
  const auto found = ids_.find(piece);
  return found == ids_.end() ? nullptr : &found->second;
}

// A merge is written "left right"; spaces inside a piece are U+2581.
void Tokenizer::read_merges(const std::vector<std::string>& merges) {
  if (merges.size() > kMostMerges) fail(MOBILLAMA_UNSUPPORTED, "%zu merges; expected %zu at most", merges.size(), kMostMerges);
  for (size_t rank = 0; rank < merges.size(); rank++) {
    const size_t left = merges[rank].find(' ');
    std::string both = merges[rank];
    if (left != std::string::npos) both.erase(left, 1);
    const int32_t* id = left == std::string::npos ? nullptr : find(both);
    if (id == nullptr) {
      fail(MOBILLAMA_FORMAT, "merge %zu is '%.80s'; expected two pieces that together are one: the file is damaged", rank,
           merges[rank].c_str());
    }
    merges_.emplace(uint64_t(*id) << 32 | left, -static_cast<float>(rank));
  }
}

// How early the two parts of a piece become one; nullptr if they never do.
const float* Tokenizer::priority(std::string_view both, size_t left) const {
  const int32_t* id = find(both);
  if (id == nullptr || merges_.empty()) return id == nullptr ? nullptr : &scores_[static_cast<size_t>(*id)];
  const auto found = merges_.find(uint64_t(*id) << 32 | left);
  return found == merges_.end() ? nullptr : &found->second;
}

// The id of a piece; else those of its bytes; where the vocabulary has not even these, one unknown id for all in a row.
void Tokenizer::append_ids(std::string_view piece, std::vector<int32_t>& ids) const {
  if (const int32_t* id = find(piece)) {
    ids.push_back(*id);
    return;
  }
  const auto byte_id = [&](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
  if (std::all_of(piece.begin(), piece.end(), [&](char byte) { return byte_id(byte) >= 0; })) {
    for (const char byte : piece) ids.push_back(byte_id(byte));
    return;
  }
  if (unknown_id_ < 0) {
    fail(MOBILLAMA_UNSUPPORTED, "the tokenizer has no piece for '%.*s', no bytes and no unknown id: give ids with --ids, or text without it",
         static_cast<int>(piece.size()), piece.data());
  }
  if (ids.empty() || ids.back() != unknown_id_) ids.push_back(unknown_id_);
}

}  // namespace mobillama
