// The pyramid of codes, all scales in one kernel: pyramid_input (codes to the proxy's rows) and pyramid_quantize (features
// to codes). A code's vector is resized bicubically to the full side, goes through its scale's convolution, and is added
// to a map; the map is averaged down to the side of a scale. Source: models/quant.py; src/engine/ops/pyramid/mod.rs is the
// reference, whose order of operations is kept.
//
// One block of 256 threads a sample. In shared memory (or, if it does not fit, in a workspace in global memory): the map
// [H, H, C], the resized vectors [H, H, C | 1] (odd, so that pixels lie in different banks) or the averaged features, half
// resized rows or the search's results, and a scale's codes: 94 KB for H = 16, C = 32. Bytes moved: codes and rows once;
// codebook and convolutions come from the caches. Multiplications a sample: 9 H^2 C^2 a scale with a convolution, and
// L V C for the search (2.4 million and 89 million in the released sizes).
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;
// Codes of a block of the codebook, two a lane; rows that a warp searches at once.
constexpr unsigned CODES = 2 * WARP;
constexpr unsigned ROWS = 8;

struct Tables {
    // [V, C]
    const float *codebook;
    // The side of each scale.
    const uint32_t *sides;
    // [S - 1, H, 4]: what a place of the full side is made of.
    const uint32_t *tap_index;
    const float *tap_weight;
    // [n, 9, C, 4 groups], its bias [n, 4 groups], the share of each, and which one each scale uses.
    const float *convolutions, *biases, *ratios;
    const uint32_t *phi;
    unsigned scales, side, channels, codes, convolution_count;

    __device__ __forceinline__ unsigned groups() const { return (channels + 3) / 4; }
    __device__ __forceinline__ unsigned pixel() const { return channels | 1; }
};

struct Space {
    float *map, *resized, *rows;
    uint32_t *codes;
};

// `row_numbers`: as many as the half resized rows or the search need.
__device__ __forceinline__ Space space_of(float *from, const Tables &tables, unsigned row_numbers) {
    unsigned cells = tables.side * tables.side;
    Space space;
    space.map = from;
    space.resized = space.map + (cells * tables.channels + 3) / 4 * 4;
    space.rows = space.resized + cells * (tables.groups() * 4 + 1) + 3 - (cells * (tables.groups() * 4 + 1) + 3) % 4;
    space.codes = reinterpret_cast<uint32_t *>(space.rows + row_numbers);
    return space;
}

// Adds SIGN times the vectors of a scale's codes, resized and convolved, to the map.
template <int SIGN>
__device__ __forceinline__ void
add_scale(const Space &space, const Tables &tables, const uint32_t *codes, unsigned scale) {
    unsigned side = tables.sides[scale], full = tables.side, channels = tables.channels, width = full * channels;
    unsigned pixel = tables.pixel();
    if (side == full) {
        // The last scale is not resized.
        for (unsigned at = threadIdx.x; at < full * width; at += THREADS) {
            unsigned place = at / channels, c = at % channels, code = codes[place];
            if (code >= tables.codes) TRAP("a code is not in the codebook");
            space.resized[place * pixel + c] = tables.codebook[uint64_t(code) * channels + c];
        }
    } else {
        const uint32_t *index = tables.tap_index + scale * full * 4;
        const float *weight = tables.tap_weight + scale * full * 4;
        for (unsigned at = threadIdx.x; at < side * width; at += THREADS) {
            unsigned c = at % channels, x = at / channels % full, y = at / width;
            float values[4];
#pragma unroll
            for (unsigned tap = 0; tap < 4; ++tap) {
                unsigned code = codes[y * side + index[x * 4 + tap]];
                if (code >= tables.codes) TRAP("a code is not in the codebook");
                values[tap] = tables.codebook[uint64_t(code) * channels + c] * weight[x * 4 + tap];
            }
            space.rows[at] = values[0] + values[1] + values[2] + values[3];
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < full * width; at += THREADS) {
            unsigned y = at / width, rest = at % width;
            float values[4];
#pragma unroll
            for (unsigned tap = 0; tap < 4; ++tap) {
                values[tap] = space.rows[index[y * 4 + tap] * width + rest] * weight[y * 4 + tap];
            }
            space.resized[at / channels * pixel + at % channels] =
                values[0] + values[1] + values[2] + values[3];
        }
    }
    __syncthreads();
    if (tables.convolution_count == 0) {
        for (unsigned at = threadIdx.x; at < full * width; at += THREADS) {
            space.map[at] += SIGN * space.resized[at / channels * pixel + at % channels];
        }
        __syncthreads();
        return;
    }
    // A thread: 4 output channels of 4 neighbouring pixels.
    unsigned groups = tables.groups(), quads = (full + 3) / 4, which = tables.phi[scale];
    const float *kernel = tables.convolutions + uint64_t(which) * 9 * channels * groups * 4;
    float ratio = tables.ratios[which];
    for (unsigned item = threadIdx.x; item < groups * quads * full; item += THREADS) {
        unsigned group = item % groups, left = item / groups % quads * 4, y = item / groups / quads;
        float bias[4], sums[4][4];
        load<4>(bias, tables.biases + (which * groups + group) * 4);
#pragma unroll
        for (unsigned p = 0; p < 4; ++p) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) sums[p][i] = bias[i];
        }
        for (unsigned tap = 0; tap < 9; ++tap) {
            // One less than what is meant; below 0 it is far above the side.
            unsigned from_y = y + tap / 3 - 1, from_x = left + tap % 3 - 1;
            bool inside[4];
            unsigned from[4];
#pragma unroll
            for (unsigned p = 0; p < 4; ++p) {
                inside[p] = from_y < full && from_x + p < full;
                from[p] = inside[p] ? (from_y * full + from_x + p) * pixel : 0;
            }
            for (unsigned into = 0; into < channels; ++into) {
                float w[4];
                load<4>(w, kernel + (uint64_t(tap * channels + into) * groups + group) * 4);
#pragma unroll
                for (unsigned p = 0; p < 4; ++p) {
                    float value = inside[p] ? space.resized[from[p] + into] : 0.0f;
#pragma unroll
                    for (unsigned i = 0; i < 4; ++i) sums[p][i] += value * w[i];
                }
            }
        }
#pragma unroll
        for (unsigned p = 0; p < 4; ++p) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
                unsigned c = group * 4 + i, place = y * full + left + p;
                if (left + p < full && c < channels) {
                    float value = space.resized[place * pixel + c] * (1.0f - ratio) + sums[p][i] * ratio;
                    space.map[place * channels + c] += SIGN * value;
                }
            }
        }
    }
    __syncthreads();
}

// The mean of channel c of the map over the window of one cell of a smaller side.
__device__ __forceinline__ float
cell_mean(const float *map, unsigned full, unsigned side, unsigned channels, unsigned cell, unsigned c) {
    unsigned row = cell / side, column = cell % side;
    unsigned top = row * full / side, bottom = ((row + 1) * full + side - 1) / side;
    unsigned left = column * full / side, right = ((column + 1) * full + side - 1) / side;
    float sum = 0.0f;
    for (unsigned y = top; y < bottom; ++y) {
        for (unsigned x = left; x < right; ++x) sum += map[(y * full + x) * channels + c];
    }
    return sum / float((bottom - top) * (right - left));
}

// codes: [B, L]; rows in float and in T (either may be null): [B, head + L - first, C], of which the first `head` rows of
// each sample are set to zero. A scale's rows show what all scales before it make; with `through`, the scale's own codes, too.
template <class T>
__device__ __forceinline__ void pyramid_input(
    float *wide, T *rows, float *workspace, const uint32_t *codes, const Tables &tables, unsigned tokens,
    unsigned head, unsigned through, unsigned row_numbers, unsigned numbers) {
    DYNAMIC_SHARED(float, shared);
    Space space = space_of(
        workspace == nullptr ? shared : workspace + uint64_t(blockIdx.x) * numbers, tables, row_numbers);
    unsigned channels = tables.channels, full = tables.side, first = tables.sides[0] * tables.sides[0];
    uint64_t row = uint64_t(blockIdx.x) * (head + tokens - first);
    codes += uint64_t(blockIdx.x) * tokens;
    for (unsigned at = threadIdx.x; at < full * full * channels; at += THREADS) space.map[at] = 0.0f;
    for (unsigned at = threadIdx.x; at < head * channels; at += THREADS) {
        if (wide != nullptr) wide[row * channels + at] = 0.0f;
        if (rows != nullptr) rows[row * channels + at] = from_float<T>(0.0f);
    }
    row += head;
    __syncthreads();
    unsigned before = through ? 0 : 1;
    for (unsigned scale = 0; scale + before < tables.scales; ++scale) {
        add_scale<1>(space, tables, codes, scale);
        codes += tables.sides[scale] * tables.sides[scale];
        if (scale + before == 0) continue;
        unsigned side = tables.sides[scale + before];
        for (unsigned at = threadIdx.x; at < side * side * channels; at += THREADS) {
            float value = cell_mean(space.map, full, side, channels, at / channels, at % channels);
            if (wide != nullptr) wide[row * channels + at] = value;
            if (rows != nullptr) rows[row * channels + at] = from_float<T>(value);
        }
        row += side * side;
        __syncthreads();
    }
}

// The nearest code of each of `cells` rows `z` [cells, 4 groups]: |z|^2 + |e|^2 - 2 z.e, the first of equal ones. Blocks of
// 64 codes are dealt to the warps, each of which goes through all rows, 8 at a time. `packed`: [blocks, 4 groups, 64], with
// the codes' |e|^2 in `norms`, infinite where there is no code. `scratch`: 17 numbers a row.
__device__ __forceinline__ void nearest(
    uint32_t *codes, float *scratch, const float *z, const float *packed, const float *norms, unsigned cells,
    const Tables &tables) {
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, width = tables.groups() * 4;
    unsigned blocks = (tables.codes + CODES - 1) / CODES;
    float *lengths = scratch, *distances = scratch + cells;
    auto *found = reinterpret_cast<uint32_t *>(distances + WARPS * cells);
    for (unsigned cell = threadIdx.x; cell < cells; cell += THREADS) {
        float sum = 0.0f;
        for (unsigned c = 0; c < tables.channels; ++c) sum += z[cell * width + c] * z[cell * width + c];
        lengths[cell] = sum;
    }
    __syncthreads();
    for (unsigned row = 0; row < cells; row += ROWS) {
        float best[ROWS];
        unsigned best_code[ROWS];
#pragma unroll
        for (unsigned r = 0; r < ROWS; ++r) {
            best[r] = INFINITY;
            best_code[r] = ~0u;
        }
        for (unsigned block = warp; block < blocks; block += WARPS) {
            const float *from = packed + uint64_t(block) * width * CODES + 2 * lane;
            float products[ROWS][2] = {};
            for (unsigned c = 0; c < width; c += 4) {
                float e[4][2];
#pragma unroll
                for (unsigned i = 0; i < 4; ++i) load<2>(e[i], from + (c + i) * CODES);
#pragma unroll
                for (unsigned r = 0; r < ROWS; ++r) {
                    float values[4];
                    load<4>(values, z + min(row + r, cells - 1) * width + c);
#pragma unroll
                    for (unsigned i = 0; i < 4; ++i) {
                        products[r][0] += values[i] * e[i][0];
                        products[r][1] += values[i] * e[i][1];
                    }
                }
            }
            float lengths_of_codes[2];
            load<2>(lengths_of_codes, norms + block * CODES + 2 * lane);
#pragma unroll
            for (unsigned r = 0; r < ROWS; ++r) {
                float length = lengths[min(row + r, cells - 1)];
#pragma unroll
                for (unsigned i = 0; i < 2; ++i) {
                    float distance = (length + lengths_of_codes[i]) - 2.0f * products[r][i];
                    if (distance < best[r]) {
                        best[r] = distance;
                        best_code[r] = block * CODES + 2 * lane + i;
                    }
                }
            }
        }
#pragma unroll
        for (unsigned r = 0; r < ROWS; ++r) {
#pragma unroll
            for (unsigned other = WARP / 2; other > 0; other /= 2) {
                float distance = __shfl_xor_sync(ALL_LANES, best[r], other);
                unsigned code = __shfl_xor_sync(ALL_LANES, best_code[r], other);
                if (distance < best[r] || (distance == best[r] && code < best_code[r])) {
                    best[r] = distance;
                    best_code[r] = code;
                }
            }
            if (lane == 0 && row + r < cells) {
                distances[warp * cells + row + r] = best[r];
                found[warp * cells + row + r] = best_code[r];
            }
        }
    }
    __syncthreads();
    for (unsigned cell = threadIdx.x; cell < cells; cell += THREADS) {
        float best = distances[cell];
        unsigned code = found[cell];
        for (unsigned other = 1; other < WARPS; ++other) {
            float distance = distances[other * cells + cell];
            unsigned candidate = found[other * cells + cell];
            if (distance < best || (distance == best && candidate < code)) {
                best = distance;
                code = candidate;
            }
        }
        // Distances that all overflow to infinity leave none.
        codes[cell] = code < tables.codes ? code : 0;
    }
    __syncthreads();
}

// features: [B, C, H, H] in float; codes: [B, L].
__device__ __forceinline__ void quantize(
    uint32_t *codes, float *workspace, const float *features, const float *packed, const float *norms,
    const Tables &tables, unsigned tokens, unsigned row_numbers, unsigned numbers) {
    DYNAMIC_SHARED(float, shared);
    Space space = space_of(
        workspace == nullptr ? shared : workspace + uint64_t(blockIdx.x) * numbers, tables, row_numbers);
    unsigned channels = tables.channels, full = tables.side, pixels = full * full, width = tables.groups() * 4;
    features += uint64_t(blockIdx.x) * pixels * channels;
    codes += uint64_t(blockIdx.x) * tokens;
    for (unsigned at = threadIdx.x; at < pixels * channels; at += THREADS) {
        float value = features[at];
        if (!(fabsf(value) < INFINITY)) TRAP("a feature is not finite");
        space.map[at % pixels * channels + at / pixels] = value;
    }
    __syncthreads();
    for (unsigned scale = 0; scale < tables.scales; ++scale) {
        unsigned side = tables.sides[scale], cells = side * side;
        for (unsigned at = threadIdx.x; at < cells * width; at += THREADS) {
            unsigned c = at % width;
            space.resized[at] = c < channels ? cell_mean(space.map, full, side, channels, at / width, c) : 0.0f;
        }
        __syncthreads();
        nearest(space.codes, space.rows, space.resized, packed, norms, cells, tables);
        for (unsigned cell = threadIdx.x; cell < cells; cell += THREADS) codes[cell] = space.codes[cell];
        codes += cells;
        if (scale + 1 < tables.scales) add_scale<-1>(space, tables, space.codes, scale);
    }
}

#define PYRAMID_TABLES                                                                                                 \
    const float *codebook, const uint32_t *sides, const uint32_t *tap_index, const float *tap_weight,                  \
        const float *convolutions, const float *biases, const float *ratios, const uint32_t *phi, uint32_t scales,     \
        uint32_t side, uint32_t channels, uint32_t vocabulary, uint32_t convolution_count
#define PYRAMID_TABLE_VALUES                                                                                           \
    {codebook, sides, tap_index, tap_weight, convolutions, biases,           ratios,                                   \
     phi,      scales, side,     channels,   vocabulary,   convolution_count}

#define PYRAMID_INPUT(T, suffix)                                                                                       \
    KERNEL(                                                                                                            \
        pyramid_input_##suffix, THREADS, float *wide, T *rows, float *workspace, const uint32_t *codes,                \
        PYRAMID_TABLES, uint32_t tokens, uint32_t head, uint32_t through, uint32_t row_numbers, uint32_t numbers) {    \
        pyramid_input(                                                                                                 \
            wide, rows, workspace, codes, PYRAMID_TABLE_VALUES, tokens, head, through, row_numbers, numbers);          \
    }
PYRAMID_INPUT(float, f32)
PYRAMID_INPUT(bf16, bf16)
PYRAMID_INPUT(f16, f16)

KERNEL(
    pyramid_quantize, THREADS, uint32_t *codes, float *workspace, const float *features, const float *packed,
    const float *norms, PYRAMID_TABLES, uint32_t tokens, uint32_t row_numbers, uint32_t numbers) {
    quantize(
        codes, workspace, features, packed, norms, PYRAMID_TABLE_VALUES, tokens, row_numbers, numbers);
}
