// The weight gradient of a 3x3 convolution with padding 1, bf16 in and fp32 out, for processors with AVX512_BF16.
//
//     weights[k][r][s][c]  =  sum over n, p, q of  gradients[n][p][q][k] * images[n][stride p + r - 1][stride q + s - 1][c]
//
// The processor's instruction multiplies pairs: each of 16 lanes adds a1 b1 + a2 b2, in fp32. What is summed over is
// images and places, so a pair is the same place of two images: packed once, every tap then finds its pairs by
// an offset alone. A tile of 8 output channels, 3 taps of a row and 16 input channels is summed in 24 registers.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = uint16_t;
constexpr int64_t LANES = 16, ROWS = 8, TAPS = 3, TILE = ROWS * TAPS * LANES;
constexpr int64_t NEAR = 768 * 1024;  // bytes of packed images and gradients a thread works on: they stay in 1 MiB of L2

int64_t in_whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// 16 channels of one place, of two images: [channel][image].
__m512i paired(const bf16* one, const bf16* two) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(one)));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(two)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// [place][channel] of two images -> [channel / 16][place][16][image]; `plane` lies between blocks of channels.
void pack_images(const bf16* one, const bf16* two, int64_t places, int64_t channels, bf16* to, int64_t plane) {
  for (int64_t place = 0; place < places; ++place)
    for (int64_t c = 0; c < channels; c += LANES)
      _mm512_store_si512(to + c / LANES * plane + place * 2 * LANES,
                         paired(one + place * channels + c, two + place * channels + c));
}

// The same in blocks of 8 channels: [channel / 8][place][8][image].
void pack_gradients(const bf16* one, const bf16* two, int64_t places, int64_t channels, bf16* to, int64_t plane) {
  for (int64_t place = 0; place < places; ++place)
    for (int64_t k = 0; k < channels; k += LANES) {
      const __m512i found = paired(one + place * channels + k, two + place * channels + k);
      bf16* first = to + k / ROWS * plane + place * 2 * ROWS;
      _mm256_store_si256(reinterpret_cast<__m256i*>(first), _mm512_castsi512_si256(found));
      _mm256_store_si256(reinterpret_cast<__m256i*>(first + plane), _mm512_extracti64x4_epi64(found, 1));
    }
}

struct Shape {
  int64_t height, width, channels, rows, columns, outputs, stride;  // of the images; of the gradients; the step
  int64_t padded_width() const { return width + 2; }
  int64_t image_plane() const { return (height + 2) * padded_width() * 2 * LANES; }  // a pair, 16 channels
  int64_t gradient_plane() const { return rows * columns * 2 * ROWS; }               // a pair, 8 channels
  int64_t image_pair() const { return channels / LANES * image_plane(); }
  int64_t gradient_pair() const { return outputs / ROWS * gradient_plane(); }
  int64_t tiles() const { return outputs / ROWS * TAPS * (channels / LANES); }
};

// Adds to `sums` [8][3][16] (or begins them) what `pairs` of images give to one tile.
void add_tile(const bf16* images, const bf16* gradients, int64_t pairs, const Shape& shape, bool begin, float* sums) {
  __m512 sum[ROWS][TAPS];
  for (int64_t k = 0; k < ROWS; ++k)
    for (int64_t s = 0; s < TAPS; ++s)
      sum[k][s] = begin ? _mm512_setzero_ps() : _mm512_load_ps(sums + (k * TAPS + s) * LANES);
  const int64_t step = 2 * LANES * shape.stride;
  for (int64_t pair = 0; pair < pairs; ++pair)
    for (int64_t p = 0; p < shape.rows; ++p) {
      const bf16* image = images + pair * shape.image_plane() + p * step * shape.padded_width();
      for (int64_t q = 0; q < shape.columns; ++q, image += step, gradients += 2 * ROWS) {
        const __m512bh left = (__m512bh)_mm512_load_si512(image);
        const __m512bh middle = (__m512bh)_mm512_load_si512(image + 2 * LANES);
        const __m512bh right = (__m512bh)_mm512_load_si512(image + 4 * LANES);
#pragma GCC unroll 8
        for (int64_t k = 0; k < ROWS; ++k) {
          int32_t both;
          std::memcpy(&both, gradients + 2 * k, sizeof(both));
          const __m512bh gradient = (__m512bh)_mm512_set1_epi32(both);
          sum[k][0] = _mm512_dpbf16_ps(sum[k][0], gradient, left);
          sum[k][1] = _mm512_dpbf16_ps(sum[k][1], gradient, middle);
          sum[k][2] = _mm512_dpbf16_ps(sum[k][2], gradient, right);
        }
      }
    }
  for (int64_t k = 0; k < ROWS; ++k)
    for (int64_t s = 0; s < TAPS; ++s) _mm512_store_ps(sums + (k * TAPS + s) * LANES, sum[k][s]);
}

// Sums [channel / 16][r][k / 8][8][3][16] of image pairs `first` to `last`; `packed` holds `block` pairs at once.
void add_pairs(const bf16* images, const bf16* gradients, int64_t first, int64_t last, int64_t block,
               const Shape& shape, char* packed, float* sums) {
  bf16* near_images = reinterpret_cast<bf16*>(packed);
  bf16* near_gradients = near_images + block * shape.image_pair();
  std::memset(near_images, 0, block * shape.image_pair() * sizeof(bf16));  // the border stays zero
  const int64_t image = shape.height * shape.width * shape.channels;
  const int64_t gradient = shape.rows * shape.columns * shape.outputs;
  for (int64_t from = first; from < last; from += block) {
    const int64_t pairs = std::min(block, last - from);
    for (int64_t i = 0; i < pairs; ++i) {
      const bf16* one = images + 2 * (from + i) * image;
      bf16* inside = near_images + i * shape.image_plane() + (shape.padded_width() + 1) * 2 * LANES;
      for (int64_t h = 0; h < shape.height; ++h)
        pack_images(one + h * shape.width * shape.channels, one + image + h * shape.width * shape.channels,
                    shape.width, shape.channels, inside + h * shape.padded_width() * 2 * LANES,
                    block * shape.image_plane());
      one = gradients + 2 * (from + i) * gradient;
      pack_gradients(one, one + gradient, shape.rows * shape.columns, shape.outputs,
                     near_gradients + i * shape.gradient_plane(), block * shape.gradient_plane());
    }
    float* tile = sums;
    for (int64_t c = 0; c < shape.channels / LANES; ++c)
      for (int64_t r = 0; r < TAPS; ++r)
        for (int64_t k = 0; k < shape.outputs / ROWS; ++k, tile += TILE)
          add_tile(near_images + c * block * shape.image_plane() + r * shape.padded_width() * 2 * LANES,
                   near_gradients + k * block * shape.gradient_plane(), pairs, shape, from == first, tile);
  }
}

}  // namespace

// images [N, H, W, C] and gradients [N, P, Q, K], contiguous -> weights [K, 3, 3, C]. N even, C and K multiples of 16.
extern "C" void weight_gradient(const bf16* images, const bf16* gradients, float* weights, int64_t number,
                                int64_t height, int64_t width, int64_t channels, int64_t outputs, int64_t stride,
                                int64_t threads) {
  const Shape shape{height, width, channels, (height - 1) / stride + 1, (width - 1) / stride + 1, outputs, stride};
  const int64_t pairs = number / 2, size = shape.tiles() * TILE;
  threads = std::min(threads, pairs);
  const int64_t pair = (shape.image_pair() + shape.gradient_pair()) * sizeof(bf16);
  const int64_t block = std::clamp<int64_t>(NEAR / pair, 1, (pairs + threads - 1) / threads);
  // Kept from call to call: memory that is new each time costs as much as packing into it.
  thread_local std::vector<char> kept;
  const int64_t each = in_whole_lines(size * sizeof(float)) + in_whole_lines(block * pair);
  if (static_cast<int64_t>(kept.size()) < threads * each + 64) kept.resize(threads * each + 64);
  char* memory = reinterpret_cast<char*>(in_whole_lines(reinterpret_cast<int64_t>(kept.data())));
  auto sums_of = [=](int64_t part) { return reinterpret_cast<float*>(memory + part * each); };
  // A part for each thread; should there be fewer threads than were asked for, one does several.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int64_t part = 0; part < threads; ++part) {
    char* packed = memory + part * each + in_whole_lines(size * sizeof(float));
    add_pairs(images, gradients, pairs * part / threads, pairs * (part + 1) / threads, block, shape, packed,
              sums_of(part));
  }
#pragma omp parallel for num_threads(threads)
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t r = 0; r < TAPS; ++r)
      for (int64_t s = 0; s < TAPS; ++s)
        for (int64_t c = 0; c < channels / LANES; ++c) {
          const int64_t at = ((c * TAPS + r) * outputs + k) * TAPS * LANES + s * LANES;
          __m512 sum = _mm512_load_ps(sums_of(0) + at);
          for (int64_t part = 1; part < threads; ++part) sum = _mm512_add_ps(sum, _mm512_load_ps(sums_of(part) + at));
          _mm512_storeu_ps(weights + ((k * TAPS + r) * TAPS + s) * channels + c * LANES, sum);
        }
}
