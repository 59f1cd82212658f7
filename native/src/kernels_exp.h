// exp for float32, one order of operations for every instruction set: n = nearest-even(x / ln 2), r = x - n ln 2 in two
// parts, a polynomial of degree 6 in r, times 2^n. Relative error below 1e-7 in [-87, 88]; outside, x is cut to that
// range.
#pragma once

namespace mobillama {

constexpr float kExpLow = -87.0f, kExpHigh = 88.0f;
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // their sum is ln 2; the first has 9 bits
// 1 + r + r^2 / 2, then the four terms of least largest relative error for |r| up to ln 2 / 2: 4e-9.
constexpr float kExp[7] = {1.0f, 1.0f, 0.5f, 0.166665345f, 0.0416672379f, 0.00836750958f, 0.00138637563f};

}  // namespace mobillama
