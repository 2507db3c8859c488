// What batch norm sums over a batch, forward and backward, of bf16 in channels-last memory: [rows, channels].
//
// A few rows at a time are summed in fp32 in registers, all channels of a row before the next one, so memory is
// read once and in order; these sums are added up in double precision.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = uint16_t;
constexpr int64_t LANES = 16, WIDE = 4, NEAR = 16 * 1024;  // elements of a chunk: they stay in the first cache

__m512 load(const bf16* at) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Of `rows` rows and COUNT * 16 channels: what they differ from the first row, and its square.
template <int64_t COUNT>
void differences(const bf16* x, const bf16*, const float*, int64_t rows, int64_t channels, float* one, float* two) {
  __m512 first[COUNT], sum[COUNT], square[COUNT];
  for (int64_t v = 0; v < COUNT; ++v)
    first[v] = load(x + v * LANES), sum[v] = square[v] = _mm512_setzero_ps();
  for (int64_t row = 0; row < rows; ++row, x += channels)
    for (int64_t v = 0; v < COUNT; ++v) {
      const __m512 difference = _mm512_sub_ps(load(x + v * LANES), first[v]);
      sum[v] = _mm512_add_ps(sum[v], difference);
      square[v] = _mm512_fmadd_ps(difference, difference, square[v]);
    }
  for (int64_t v = 0; v < COUNT; ++v)
    _mm512_storeu_ps(one + v * LANES, sum[v]), _mm512_storeu_ps(two + v * LANES, square[v]);
}

// The same of gradients `g`, and of their products with x - mean.
template <int64_t COUNT>
void products(const bf16* g, const bf16* x, const float* mean, int64_t rows, int64_t channels, float* one,
              float* two) {
  __m512 middle[COUNT], sum[COUNT], product[COUNT];
  for (int64_t v = 0; v < COUNT; ++v)
    middle[v] = _mm512_loadu_ps(mean + v * LANES), sum[v] = product[v] = _mm512_setzero_ps();
  for (int64_t row = 0; row < rows; ++row, g += channels, x += channels)
    for (int64_t v = 0; v < COUNT; ++v) {
      const __m512 gradient = load(g + v * LANES);
      sum[v] = _mm512_add_ps(sum[v], gradient);
      product[v] = _mm512_fmadd_ps(gradient, _mm512_sub_ps(load(x + v * LANES), middle[v]), product[v]);
    }
  for (int64_t v = 0; v < COUNT; ++v)
    _mm512_storeu_ps(one + v * LANES, sum[v]), _mm512_storeu_ps(two + v * LANES, product[v]);
}

// Two fp32 sums a channel for each chunk of rows: [chunk][2][channels].
struct Chunks {
  int64_t rows, channels, each, count;
  Chunks(int64_t rows, int64_t channels)
      : rows(rows), channels(channels), each(std::max<int64_t>(1, NEAR / channels)), count((rows + each - 1) / each) {}
  int64_t rows_of(int64_t chunk) const { return std::min(each, rows - chunk * each); }

  template <class Wide, class Narrow>
  const float* sums(Wide wide, Narrow narrow, const bf16* a, const bf16* b, const float* mean, int64_t threads) const {
    thread_local std::vector<float> kept;
    kept.resize(std::max<size_t>(kept.size(), count * 2 * channels));
    float* to = kept.data();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      const int64_t from = chunk * each * channels;
      float *one = to + chunk * 2 * channels, *two = one + channels;
      for (int64_t c = 0; c < channels;) {
        const bool fits = c + WIDE * LANES <= channels;
        (fits ? wide : narrow)(a + from + c, b + from + c, mean + c, rows_of(chunk), channels, one + c, two + c);
        c += fits ? WIDE * LANES : LANES;
      }
    }
    return to;
  }
};

}  // namespace

// images [rows, channels] -> mean and variance (over n, not n - 1), [channels]. Channels: a multiple of 16.
extern "C" void moments(const bf16* images, float* mean, float* variance, int64_t rows, int64_t channels,
                        int64_t threads) {
  const Chunks chunks(rows, channels);
  const float* sums = chunks.sums(differences<WIDE>, differences<1>, images, images, mean, threads);
#pragma omp parallel for num_threads(threads)
  for (int64_t c = 0; c < channels; ++c) {
    double middle = 0, spread = 0, seen = 0;  // of the chunks so far: mean, squared distances from it, rows
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      const double n = chunks.rows_of(chunk), sum = sums[chunk * 2 * channels + c];
      const uint32_t bits = static_cast<uint32_t>(images[chunk * chunks.each * channels + c]) << 16;
      float first;
      std::memcpy(&first, &bits, sizeof(first));
      const double other = first + sum / n, apart = other - middle;
      spread += sums[(chunk * 2 + 1) * channels + c] - sum * sum / n + apart * apart * seen * n / (seen + n);
      middle += apart * n / (seen + n);
      seen += n;
    }
    mean[c] = static_cast<float>(middle);
    variance[c] = static_cast<float>(spread / seen);
  }
}

// gradients and images [rows, channels], mean [channels] -> sums of gradients and of gradients * (images - mean).
extern "C" void gradient_sums(const bf16* gradients, const bf16* images, const float* mean, float* sum,
                              float* product, int64_t rows, int64_t channels, int64_t threads) {
  const Chunks chunks(rows, channels);
  const float* sums = chunks.sums(products<WIDE>, products<1>, gradients, images, mean, threads);
#pragma omp parallel for num_threads(threads)
  for (int64_t c = 0; c < channels; ++c) {
    double one = 0, two = 0;
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      one += sums[chunk * 2 * channels + c];
      two += sums[(chunk * 2 + 1) * channels + c];
    }
    sum[c] = static_cast<float>(one);
    product[c] = static_cast<float>(two);
  }
}
