#include "layout.h"

#include <cstring>

namespace mobillama {
namespace {

constexpr int kTileQ4 = 288, kTileQ5 = 352, kTileQ8 = 544, kTileQ3K = 192, kTileQ6K = 384;
// Of a block of 256 columns: scales, then those of the sixteenths, then its tiles.
constexpr int kSuperScales = 288, kBlockQ3K = kSuperScales + 8 * kTileQ3K, kBlockQ6K = kSuperScales + 8 * kTileQ6K;

uint16_t read16(const uint8_t* at) {
  uint16_t value;
  std::memcpy(&value, at, 2);
  return value;
}

// Where in a block the scale of a row's sixteenth lies.
int sixteenth_at(int sixteenth, int row) { return 32 + 32 * (sixteenth / 2) + 2 * row + sixteenth % 2; }

bool finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

// The 16 nibble bytes of a row's block: byte i has column i in the low and i + 16 in the high nibble, as in the tile.
void put_nibbles(const uint8_t* bytes, int row, uint8_t* tile) {
  for (int j = 0; j < 4; j++) std::memcpy(tile + 64 * j + 4 * row, bytes + 4 * j, 4);
}

bool put_scale(const uint8_t* half, int row, uint8_t* scales) {
  std::memcpy(scales + 2 * row, half, 2);
  return finite_half(read16(half));
}

bool lay_q4(const uint8_t* row, int index, int groups, uint8_t* panel) {  // file: f16 scale, 16 bytes
  bool finite = true;
  for (int g = 0; g < groups; g++, row += 18, panel += kTileQ4) {
    put_nibbles(row + 2, index, panel);
    finite &= put_scale(row, index, panel + 256);
  }
  return finite;
}

bool lay_q5(const uint8_t* row, int index, int groups, uint8_t* panel) {  // file: f16 scale, 32 fifth bits, 16 bytes
  bool finite = true;
  for (int g = 0; g < groups; g++, row += 22, panel += kTileQ5) {
    put_nibbles(row + 6, index, panel);
    for (int j = 0; j < 8; j++) {  // bits 4j to 4j + 3 go to bits 4 * index to 4 * index + 3 of mask j
      const int four = row[2 + j / 2] >> (4 * (j % 2)) & 15;
      panel[256 + 8 * j + index / 2] |= static_cast<uint8_t>(four << (4 * (index % 2)));
    }
    finite &= put_scale(row, index, panel + 320);
  }
  return finite;
}

bool lay_q8(const uint8_t* row, int index, int groups, uint8_t* panel) {  // file: f16 scale, 32 int8
  bool finite = true;
  for (int g = 0; g < groups; g++, row += 34, panel += kTileQ8) {
    for (int j = 0; j < 8; j++)
      for (int i = 0; i < 4; i++) panel[64 * j + 4 * index + i] = row[2 + 4 * j + i] ^ 0x80;
    finite &= put_scale(row, index, panel + 512);
  }
  return finite;
}

// File: per half of 128 columns 64 bytes of low and 32 bytes of high bits, then 16 int8 scales and the f16 one.
// In a half, low byte l < 32 has columns l and l + 64, byte l + 32 has columns l + 32 and l + 96; high byte l has all
// four.
bool lay_q6k(const uint8_t* row, int index, int supers, uint8_t* panel) {
  bool finite = true;
  for (int s = 0; s < supers; s++, row += 210, panel += kBlockQ6K) {
    for (int sixteenth = 0; sixteenth < 16; sixteenth++) panel[sixteenth_at(sixteenth, index)] = row[192 + sixteenth];
    for (int c = 0; c < kSuper; c++) {
      const int half = c / 128, quarter = c % 128 / 32, l = c % 32;
      const int low = row[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
      const int high = row[128 + 32 * half + l] >> (2 * quarter) & 3;
      uint8_t* tile = panel + kSuperScales + kTileQ6K * (c / kGroup);
      const int group = l / 4, at = 4 * index + l % 4;
      tile[64 * (group % 4) + at] |= static_cast<uint8_t>(low << (4 * (group / 4)));
      tile[256 + 64 * (group / 4) + at] |= static_cast<uint8_t>(high << (2 * (group % 4)));
    }
    finite &= put_scale(row + 208, index, panel);
  }
  return finite;
}

// Where a 3-bit code of a column group lies in a tile: from bit `shift` of block `block` on, or, in groups 3 and 7, its
// upper two bits there and the lowest in block 2.
struct ThreeBits {
  bool apart;  // the lowest bit lies in block 2, at bit 6 or 7
  int block, shift;
  explicit ThreeBits(int group)
      : apart(group % 4 == 3), block(apart ? group / 4 : group % 4), shift(apart ? 6 : 3 * (group / 4)) {}
};

// File: 32 bytes of third bits, 64 of low two bits, 12 of scales, then the f16 one. Run r of 32 columns has bit r of
// the third bits and bits 2 (r % 4) and above of the low ones of its half.
bool lay_q3k(const uint8_t* row, int index, int supers, uint8_t* panel) {
  bool finite = true;
  for (int s = 0; s < supers; s++, row += 110, panel += kBlockQ3K) {
    for (int sixteenth = 0; sixteenth < 16; sixteenth++)
      panel[sixteenth_at(sixteenth, index)] = static_cast<uint8_t>(q3_k_scale(row + 96, sixteenth));
    for (int c = 0; c < kSuper; c++) {
      const int run = c / kGroup, l = c % kGroup;
      const int code = (row[32 + 32 * (run / 4) + l] >> (2 * (run % 4)) & 3) | (row[l] >> run & 1) << 2;
      uint8_t* tile = panel + kSuperScales + kTileQ3K * run + 4 * index + l % 4;
      const ThreeBits at(l / 4);
      tile[64 * at.block] |= static_cast<uint8_t>((at.apart ? code >> 1 : code) << at.shift);
      if (at.apart) tile[128] |= static_cast<uint8_t>((code & 1) << (6 + at.block));
    }
    finite &= put_scale(row + 108, index, panel);
  }
  return finite;
}

bool lay_float(TensorType type, const uint8_t* row, int index, int cols, uint8_t* panel) {
  const int size = type == TensorType::F32 ? 4 : 2;
  bool finite = true;
  for (int c = 0; c < cols; c++, row += size) {
    std::memcpy(panel + (static_cast<size_t>(c) * kPanelRows + static_cast<size_t>(index)) * static_cast<size_t>(size),
                row, static_cast<size_t>(size));
    const uint16_t top = read16(row + size - 2);  // sign, exponent and first bits
    finite &= type == TensorType::F16 ? finite_half(top) : (top & 0x7f80) != 0x7f80;
  }
  return finite;
}

}  // namespace

Layout layout_of(TensorType type) {
  switch (type) {
    case TensorType::F32:
      return Layout::F32;
    case TensorType::F16:
      return Layout::F16;
    case TensorType::BF16:
      return Layout::BF16;
    case TensorType::Q4_0:
      return Layout::Q4;
    case TensorType::Q5_0:
      return Layout::Q5;
    case TensorType::Q8_0:
      return Layout::Q8;
    case TensorType::Q3_K:
      return Layout::Q3K;
    case TensorType::Q6_K:
      return Layout::Q6K;
  }
  return Layout::F32;  // every TensorType is above: the reader gives no other
}

size_t panel_bytes(Layout layout, int cols) {
  const size_t groups = static_cast<size_t>(cols / kGroup), values = static_cast<size_t>(cols) * kPanelRows;
  switch (layout) {
    case Layout::F32:
      return values * 4;
    case Layout::F16:
    case Layout::BF16:
      return values * 2;
    case Layout::Q4:
      return groups * kTileQ4;
    case Layout::Q5:
      return groups * kTileQ5;
    case Layout::Q8:
      return groups * kTileQ8;
    case Layout::Q3K:
      return static_cast<size_t>(cols / kSuper) * kBlockQ3K;
    case Layout::Q6K:
      return static_cast<size_t>(cols / kSuper) * kBlockQ6K;
  }
  return 0;
}

bool lay_out(TensorType type, const uint8_t* const rows[kPanelRows], int cols, uint8_t* panel) {
  const Layout layout = layout_of(type);
  bool whole =
      layout == Layout::Q4 || layout == Layout::Q8 || is_float(layout);  // layouts in which every byte is written
  for (int i = 0; i < kPanelRows; i++) whole &= rows[i] != nullptr;
  if (!whole) std::memset(panel, 0, panel_bytes(layout, cols));
  bool finite = true;
  for (int i = 0; i < kPanelRows; i++) {
    if (rows[i] == nullptr) continue;
    switch (layout) {
      case Layout::Q4:
        finite &= lay_q4(rows[i], i, cols / kGroup, panel);
        break;
      case Layout::Q5:
        finite &= lay_q5(rows[i], i, cols / kGroup, panel);
        break;
      case Layout::Q8:
        finite &= lay_q8(rows[i], i, cols / kGroup, panel);
        break;
      case Layout::Q3K:
        finite &= lay_q3k(rows[i], i, cols / kSuper, panel);
        break;
      case Layout::Q6K:
        finite &= lay_q6k(rows[i], i, cols / kSuper, panel);
        break;
      default:
        finite &= lay_float(type, rows[i], i, cols, panel);
    }
  }
  return finite;
}

void read_row(const Panels& panels, int row, float* out) {
  const uint8_t* panel = panels.data + static_cast<size_t>(row / kPanelRows) * panels.panel_bytes;
  const int index = row % kPanelRows;
  const auto nibble = [index](const uint8_t* tile, int c) {
    const int byte = tile[64 * (c / 4 % 4) + 4 * index + c % 4];
    return c < 16 ? byte & 15 : byte >> 4;
  };
  const auto scale = [index](const uint8_t* scales) { return half_to_float(read16(scales + 2 * index)); };
  const auto sixteenth_scale = [&](const uint8_t* block, int sixteenth) {
    return scale(block) * static_cast<float>(static_cast<int8_t>(block[sixteenth_at(sixteenth, index)]));
  };
  const int groups = panels.cols / kGroup;
  switch (panels.layout) {
    case Layout::Q4:
      for (int g = 0; g < groups; g++, panel += kTileQ4)
        for (int c = 0; c < kGroup; c++) *out++ = scale(panel + 256) * static_cast<float>(nibble(panel, c) - 8);
      return;
    case Layout::Q5:
      for (int g = 0; g < groups; g++, panel += kTileQ5)
        for (int c = 0; c < kGroup; c++) {
          const int bit = 4 * index + c % 4, fifth = panel[256 + 8 * (c / 4) + bit / 8] >> (bit % 8) & 1;
          *out++ = scale(panel + 320) * static_cast<float>((nibble(panel, c) | fifth << 4) - 16);
        }
      return;
    case Layout::Q8:
      for (int g = 0; g < groups; g++, panel += kTileQ8)
        for (int c = 0; c < kGroup; c++)
          *out++ = scale(panel + 512) * static_cast<float>(panel[64 * (c / 4) + 4 * index + c % 4] - 128);
      return;
    case Layout::Q6K:
      for (int g = 0; g < groups; g++) {
        const uint8_t* block = panel + g / 8 * kBlockQ6K;
        const uint8_t* tile = block + kSuperScales + kTileQ6K * (g % 8);
        for (int c = 0; c < kGroup; c++) {
          const int group = c / 4;
          const int high = tile[256 + 64 * (group / 4) + 4 * index + c % 4] >> (2 * (group % 4)) & 3;
          const int code = nibble(tile, c) | high << 4;
          *out++ = sixteenth_scale(block, 2 * (g % 8) + c / 16) * static_cast<float>(code - 32);
        }
      }
      return;
    case Layout::Q3K:
      for (int g = 0; g < groups; g++) {
        const uint8_t* block = panel + g / 8 * kBlockQ3K;
        for (int c = 0; c < kGroup; c++) {
          const uint8_t* tile = block + kSuperScales + kTileQ3K * (g % 8) + 4 * index + c % 4;
          const ThreeBits at(c / 4);
          const int low = tile[128] >> (6 + at.block) & 1;
          const int code = at.apart ? (tile[64 * at.block] >> 6) << 1 | low : tile[64 * at.block] >> at.shift & 7;
          *out++ = sixteenth_scale(block, 2 * (g % 8) + c / 16) * static_cast<float>(code - 4);
        }
      }
      return;
    default:
      for (int c = 0; c < panels.cols; c++) {
        const size_t at = static_cast<size_t>(c) * kPanelRows + static_cast<size_t>(index);
        if (panels.layout == Layout::F16) {
          *out++ = half_to_float(read16(panel + 2 * at));
        } else {
          uint32_t bits = 0;
          if (panels.layout == Layout::F32)
            std::memcpy(&bits, panel + 4 * at, 4);
          else
            bits = static_cast<uint32_t>(read16(panel + 2 * at)) << 16;
          std::memcpy(out++, &bits, 4);
        }
      }
  }
}

}  // namespace mobillama
