#include "sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "failure.h"

// Compiled for several vector widths, the widest that this machine has taken when the library is loaded. The bits are
// the same: every step is one IEEE operation, and the build contracts none (-ffp-contract=off).
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define MOBILLAMA_EACH_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MOBILLAMA_EACH_WIDTH
#endif

namespace mobillama {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kLanes = 16;  // partial results of a pass, so that its steps need not wait for each other
constexpr size_t kSums = 4;    // partial sums of a bin, for the same reason
constexpr uint64_t kBins = 4096;
constexpr int kBinBits = 12, kFirstShift = 46;

struct Scratch {
  std::vector<double> scores;    // n: logits after penalty; then minus their maximum, over temperature
  std::vector<double> weights;   // n: exp(score), 0 where a token was dropped
  std::vector<int32_t> bins;     // n: of weights
  std::vector<int32_t> members;  // n: ids among which a border is looked for
  std::array<std::array<double, kSums>, kBins> sums;
  std::array<uint32_t, kBins> counts;
};

Scratch& scratch_for(int32_t n) {
  thread_local Scratch scratch;
  if (scratch.scores.size() < static_cast<size_t>(n)) {
    scratch.scores.resize(static_cast<size_t>(n));
    scratch.weights.resize(static_cast<size_t>(n));
    scratch.bins.resize(static_cast<size_t>(n));
    scratch.members.resize(static_cast<size_t>(n));
  }
  return scratch;
}

void check(const float* logits, int32_t n, const mobillama_sampling& s, int64_t position, const int32_t* seen,
           int32_t num_seen) {
  if (logits == nullptr || n < 1) fail(MOBILLAMA_INVALID, "%d logits to choose from; expected at least 1", n);
  // Each condition is written so that a NaN fails it.
  if (!(s.temperature >= 0 && s.temperature < kInfinity))
    fail(MOBILLAMA_INVALID, "temperature=%g; expected 0 (the likeliest token) or more, such as 0.8", s.temperature);
  if (s.top_k < 0) fail(MOBILLAMA_INVALID, "top_k=%d; expected 0 (all) or more", s.top_k);
  if (!(s.top_p > 0 && s.top_p <= 1))
    fail(MOBILLAMA_INVALID, "top_p=%g; expected more than 0 and at most 1 (all)", s.top_p);
  if (!(s.repetition_penalty >= 0.01 && s.repetition_penalty <= 100))
    fail(MOBILLAMA_INVALID, "repetition_penalty=%g; expected 0.01 to 100; 1 = none", s.repetition_penalty);
  if (s.num_ids < 0) fail(MOBILLAMA_INVALID, "num_ids=%d; expected 0 (all) or more", s.num_ids);
  if (position < 0) fail(MOBILLAMA_INVALID, "position %lld; expected 0 or more", static_cast<long long>(position));
  if (num_seen < 0 || (num_seen > 0 && seen == nullptr))
    fail(MOBILLAMA_INVALID, "%d ids already in the text, at address %p", num_seen, static_cast<const void*>(seen));
}

// The largest value; NaN if any is.
template <typename T>
T largest(const T* values, int32_t n) {
  std::array<T, kLanes> most, wrong{};
  most.fill(-std::numeric_limits<T>::infinity());
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const T value = values[i + static_cast<int32_t>(lane)];
      most[lane] = value > most[lane] ? value : most[lane];
      wrong[lane] += value != value ? T(1) : T(0);
    }
  T result = -std::numeric_limits<T>::infinity(), bad = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    result = std::max(result, most[lane]);
    bad += wrong[lane];
  }
  for (; i < n; ++i) {
    result = std::max(result, values[i]);
    bad += values[i] != values[i] ? T(1) : T(0);
  }
  return bad > 0 ? std::numeric_limits<T>::quiet_NaN() : result;
}

template <typename T>
int32_t first_of(const T* values, int32_t n, T wanted) {
  return static_cast<int32_t>(std::find(values, values + n, wanted) - values);
}

// Ids already in the text (Keskar et al. 2019, CTRL, section 4.1). From the logit itself: a repeat changes nothing.
void penalise(double* scores, int32_t n, const float* logits, int32_t num_logits, double penalty, const int32_t* seen,
              int32_t num_seen) {
  for (int32_t i = 0; i < num_seen; ++i) {
    const int32_t id = seen[i];
    if (id < 0 || id >= num_logits)
      fail(MOBILLAMA_INVALID, "id %d among those already in the text; expected 0 to %d", id, num_logits - 1);
    if (id >= n) continue;
    const double logit = logits[id];
    scores[id] = logit > 0 ? logit / penalty : logit * penalty;
  }
}

// exp(x) for x <= 0, within 1 unit in the last place; 0 below -708 (beside a weight of 1 such a token is never drawn).
inline double exponential(double x) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: added, it leaves a whole number in the low bits
  constexpr double kLog2E = 1.4426950408889634074;
  constexpr double kLn2High = 0x1.62e42fee00000p-1;  // ln 2 to 32 bits, so that its multiples are exact
  constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  const double shifted = x * kLog2E + kRound;
  const double whole = shifted - kRound;
  const double r = (x - whole * kLn2High) - whole * kLn2Low;  // |r| <= ln 2 / 2
  // The Taylor series; its 14th term is below 2^-57.
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  const double value = 1.0 + (r + r * r * p);
  const uint64_t scaled = std::bit_cast<uint64_t>(value) + (std::bit_cast<uint64_t>(shifted) << 52);
  return x < -708.0 ? 0.0 : std::bit_cast<double>(scaled);
}

// (score - most) / temperature: the highest becomes 0, so that exp cannot overflow.
MOBILLAMA_EACH_WIDTH void scale(double* scores, int32_t n, double most, double temperature) {
  for (int32_t i = 0; i < n; ++i) scores[i] = (scores[i] - most) / temperature;
}

// exp of the scores that are not below `least`; 0 for the others.
MOBILLAMA_EACH_WIDTH void weigh(const double* scores, int32_t n, double least, double* weights) {
  for (int32_t i = 0; i < n; ++i) {
    const double weight = exponential(scores[i]);
    weights[i] = scores[i] < least ? 0.0 : weight;
  }
}

double sum(const double* values, int32_t n) {
  std::array<double, kLanes> part{};
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) part[lane] += values[i + static_cast<int32_t>(lane)];
  for (size_t lane = 0; i < n; ++i, ++lane) part[lane] += values[i];
  for (size_t half = kLanes / 2; half > 0; half /= 2)
    for (size_t lane = 0; lane < half; ++lane) part[lane] += part[lane + half];
  return part[0];
}

// The k-th highest score, k < n; scores are <= 0.
double kth_highest(const double* scores, int32_t n, int32_t k, Scratch& scratch) {
  // Bins by exponent and 4 bits of mantissa, in single precision: rounding keeps the order.
  const auto bin = [](double score) {
    return std::bit_cast<uint32_t>(std::fabs(static_cast<float>(score))) >> (31 - kBinBits);
  };
  scratch.counts.fill(0);
  for (int32_t i = 0; i < n; ++i) ++scratch.counts[bin(scores[i])];
  uint32_t found = 0, left = static_cast<uint32_t>(k);
  while (scratch.counts[found] < left) left -= scratch.counts[found++];
  double* border = scratch.weights.data();  // not needed yet
  size_t count = 0;
  for (int32_t i = 0; i < n; ++i) {
    border[count] = scores[i];
    count += bin(scores[i]) == found;
  }
  std::nth_element(border, border + left - 1, border + count, std::greater<>());
  return border[left - 1];
}

// Grows as a weight falls from 1.
inline uint64_t fall(double weight) { return std::bit_cast<uint64_t>(1.0) - std::bit_cast<uint64_t>(weight); }

// Set weights below `floor` to 0, and find the bin of each by its exponent and 6 bits of mantissa; the last bin takes
// all below 2^-64.
MOBILLAMA_EACH_WIDTH void bin_all(double* weights, int32_t n, double floor, int32_t* bins) {
  for (int32_t i = 0; i < n; ++i) {
    weights[i] = weights[i] >= floor ? weights[i] : 0.0;
    bins[i] = static_cast<int32_t>(std::min(fall(weights[i]) >> kFirstShift, kBins - 1));
  }
}

// Set to 0 all weights but the fewest largest whose sum reaches the share p < 1 of all; of equals the lowest ids stay.
//
// Instead of sorting: sums of bins of weights are added from the top until the goal is passed, and the bin in which it
// happened is looked into again, more finely, until it is small enough to sort. The loops over ids have no branch that
// depends on a weight: weights come in no order that a processor could guess.
void keep_nucleus(double* weights, int32_t n, double p, Scratch& scratch) {
  constexpr size_t kFew = 32;
  const double total = sum(weights, n), goal = p * total;
  // All tokens below (1 - p) / n of the total sum to less than 1 - p: they cannot be in the nucleus.
  const double floor = std::max((1 - p) * total / n, std::numeric_limits<double>::min());
  int32_t* members = scratch.members.data();  // ids of which it is not yet known whether they stay
  int32_t* bins = scratch.bins.data();        // of all ids at first, then of the members
  bin_all(weights, n, floor, bins);
  size_t count = 0;
  for (int32_t i = 0; i < n; ++i) {
    members[count] = i;
    bins[count] = bins[i];
    count += weights[i] > 0;
  }
  const auto before = [&](int32_t a, int32_t b) { return weights[a] != weights[b] ? weights[a] > weights[b] : a < b; };
  double reached = 0;
  for (int shift = kFirstShift;;) {
    scratch.sums.fill({});
    for (size_t i = 0; i < count; ++i) scratch.sums[static_cast<size_t>(bins[i])][i % kSums] += weights[members[i]];
    const auto in_bin = [&](int32_t bin) {
      const auto& parts = scratch.sums[static_cast<size_t>(bin)];
      return (parts[0] + parts[1]) + (parts[2] + parts[3]);
    };
    int32_t border = 0;
    while (border < int32_t{kBins} - 1 && reached + in_bin(border) < goal) reached += in_bin(border++);
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      const int32_t id = members[i];
      weights[id] = bins[i] > border ? 0.0 : weights[id];
      members[kept] = id;
      kept += bins[i] == border;
    }
    count = kept;
    // The first last bin takes all small weights, whatever their later bits.
    if (count <= kFew || shift < kBinBits || (shift == kFirstShift && border == int32_t{kBins} - 1)) break;
    if (std::is_sorted(members, members + count, before)) break;  // all equal, as a rule
    shift -= kBinBits;
    for (size_t i = 0; i < count; ++i)
      bins[i] = static_cast<int32_t>((fall(weights[members[i]]) >> shift) % kBins);
  }
  if (!std::is_sorted(members, members + count, before)) std::sort(members, members + count, before);
  for (size_t i = 0; i < count; ++i) {
    const int32_t id = members[i];
    const double weight = weights[id];
    weights[id] = reached < goal ? weight : 0.0;
    reached += reached < goal ? weight : 0.0;
  }
}

// SplitMix64's finaliser (Steele, Lea, Flood 2014): one to one on 64 bits.
uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

// A number in [0, 1): output `position` of a SplitMix64 stream. The seed is mixed first, because streams of
// neighbouring seeds would otherwise overlap.
double uniform(uint64_t seed, int64_t position) {
  const uint64_t step = (static_cast<uint64_t>(position) + 1) * 0x9E3779B97F4A7C15u;
  return static_cast<double>(mix(mix(seed) + step) >> 11) * 0x1p-53;
}

// The id at `point` (0 to below 1) of the cumulative distribution in order of ids. Overwrites `running`.
int32_t draw(const double* weights, int32_t n, double point, double* running) {
  double reached = 0;
  for (int32_t i = 0; i < n; ++i) running[i] = reached += weights[i];
  const auto found = static_cast<int32_t>(std::upper_bound(running, running + n, point * reached) - running);
  if (found < n) return found;
  int32_t last = n - 1;
  while (weights[last] == 0) --last;
  return last;
}

}  // namespace

int32_t choose(const float* logits, int32_t n, const mobillama_sampling& sampling, int64_t position,
               const int32_t* seen, int32_t num_seen) {
  check(logits, n, sampling, position, seen, num_seen);
  const int32_t num_logits = n;
  if (sampling.num_ids > 0) n = std::min(n, sampling.num_ids);
  const float highest = largest(logits, n);
  if (!std::isfinite(highest))
    fail(MOBILLAMA_INVALID,
         "the largest logit at position %lld is %g; expected a finite number: the weights are damaged",
         static_cast<long long>(position), static_cast<double>(highest));
  const bool penalised = sampling.repetition_penalty != 1 && num_seen > 0;
  if (sampling.temperature == 0 && !penalised) return first_of(logits, n, highest);

  Scratch& scratch = scratch_for(n);
  double* scores = scratch.scores.data();
  double* weights = scratch.weights.data();
  std::copy(logits, logits + n, scores);
  if (penalised) penalise(scores, n, logits, num_logits, sampling.repetition_penalty, seen, num_seen);
  const double most = penalised ? largest(scores, n) : static_cast<double>(highest);
  if (sampling.temperature == 0) return first_of(scores, n, most);

  scale(scores, n, most, sampling.temperature);
  const bool cut = sampling.top_k > 0 && sampling.top_k < n;
  weigh(scores, n, cut ? kth_highest(scores, n, sampling.top_k, scratch) : -kInfinity, weights);
  if (sampling.top_p < 1) keep_nucleus(weights, n, sampling.top_p, scratch);
  return draw(weights, n, uniform(sampling.seed, position), scores);
}

}  // namespace mobillama
