// From a GGUF file's rows to panels (kernels.h) and back to one row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "tensor_type.h"

namespace mobillama {

Layout layout_of(TensorType type);
size_t panel_bytes(Layout layout, int cols);

// 16 rows as they lie in the file to one panel; a null row becomes zeros. `rows` and `panel` do not overlap.
// false if a scale or weight is not a finite number.
bool lay_out(TensorType type, const uint8_t* const rows[kPanelRows], int cols, uint8_t* panel);

// One row of weights as floats (cols).
void read_row(const Panels& panels, int row, float* out);

}  // namespace mobillama
