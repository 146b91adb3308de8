// The multi-scale residual quantizer, all scales in one kernel: pyramid_input (codes to the networks' input)
// and pyramid_quantize (features to codes).
//
// At each scale the codes' vectors are resized bicubically to the full side H, pass through the scale's
// convolution (h -> (1 - ratio) h + ratio conv3x3(h)), and are added to a map (or subtracted from the
// remaining features); the map is averaged down to the side of a scale.
//
//     pyramid_input       the map of all coarser scales, averaged to each scale's side
//     pyramid_quantize    code = argmin over e of |z|^2 + |e|^2 - 2 <z, e>, z the averaged features
//
// Shapes: codes [B, L]; rows [B, first_rows + L - first, C]; features [B, C, H, H] in float.
// Threads: one block of 256 per sample. Convolution: 4 output channels of 4 neighboring pixels per thread.
// Search: blocks of 64 codes are distributed over the warps, 2 codes per lane, 8 rows at a time.
// Memory: in shared memory or, where that is too small, in a workspace in global memory: the map [H, H, C],
// the resized vectors [H, H, C | 1] (an odd stride, so that pixels lie in different banks) or the averaged
// features, half-resized rows or the search's results, and a scale's codes: 94 KB for H = 16, C = 32. Codes
// and rows are moved once; codebook and convolutions come from cache.
// Work per sample: 9 H^2 C^2 multiplications per scale with a convolution, L V C for the search (2.4 and 89
// million at the released sizes).
// Precision: f32 throughout, in the reference's order of operations, because ties between codes depend on it.
// Ties go to the first code.
// Reference: src/engine/ops/pyramid/cpu/. Source: VAR (arXiv:2404.02905), models/quant.py; docs/upstream.md,
// B13 and B14.
#include "portable.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;
// Codes per block of the codebook, two per lane; rows that a warp searches at once.
constexpr unsigned CODES = 2 * WARP;
constexpr unsigned ROWS = 8;

struct Tables {
    // [V, C].
    const float *codebook;
    // The side of each scale.
    const uint32_t *sides;
    // [S - 1, H, 4]: the four bicubic taps of each position of the full side.
    const uint32_t *tap_index;
    const float *tap_weight;
    // [n, 9, C, 4 groups], its bias [n, 4 groups], the ratio of each, and which convolution each scale uses.
    const float *convolutions, *biases, *ratios;
    const uint32_t *phi;
    unsigned scales, side, channels, codes, convolution_count;

    __device__ __forceinline__ unsigned groups() const { return (channels + 3) / 4; }
    __device__ __forceinline__ unsigned pixel() const { return channels | 1; }
};

struct Buffers {
    float *map, *resized, *rows;
    uint32_t *codes;
};

// `row_floats`: the larger of the half-resized rows and the scratch of the search.
__device__ __forceinline__ Buffers carve_buffers(float *from, const Tables &tables, unsigned row_floats) {
    unsigned cells = tables.side * tables.side;
    Buffers buffers;
    buffers.map = from;
    buffers.resized = buffers.map + (cells * tables.channels + 3) / 4 * 4;
    buffers.rows =
        buffers.resized + cells * (tables.groups() * 4 + 1) + 3 - (cells * (tables.groups() * 4 + 1) + 3) % 4;
    buffers.codes = reinterpret_cast<uint32_t *>(buffers.rows + row_floats);
    return buffers;
}

// Adds SIGN times the vectors of a scale's codes, resized and convolved, to the map.
template <int SIGN>
__device__ __forceinline__ void
add_scale(const Buffers &buffers, const Tables &tables, const uint32_t *codes, unsigned scale) {
    unsigned side = tables.sides[scale], full = tables.side, channels = tables.channels;
    unsigned width = full * channels;
    unsigned pixel = tables.pixel();
    if (side == full) {
        // The last scale has the full side.
        for (unsigned at = threadIdx.x; at < full * width; at += THREADS) {
            unsigned position = at / channels, c = at % channels, code = codes[position];
            if (code >= tables.codes) TRAP("a code is not in the codebook");
            buffers.resized[position * pixel + c] = tables.codebook[uint64_t(code) * channels + c];
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
            buffers.rows[at] = values[0] + values[1] + values[2] + values[3];
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < full * width; at += THREADS) {
            unsigned y = at / width, rest = at % width;
            float values[4];
#pragma unroll
            for (unsigned tap = 0; tap < 4; ++tap) {
                values[tap] = buffers.rows[index[y * 4 + tap] * width + rest] * weight[y * 4 + tap];
            }
            buffers.resized[at / channels * pixel + at % channels] =
                values[0] + values[1] + values[2] + values[3];
        }
    }
    __syncthreads();
    if (tables.convolution_count == 0) {
        for (unsigned at = threadIdx.x; at < full * width; at += THREADS) {
            buffers.map[at] += SIGN * buffers.resized[at / channels * pixel + at % channels];
        }
        __syncthreads();
        return;
    }
    // Per thread: 4 output channels of 4 neighboring pixels.
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
            // Offset by -1. Below 0 the unsigned value wraps to far above the side.
            unsigned from_y = y + tap / 3 - 1, from_x = left + tap % 3 - 1;
            bool inside[4];
            unsigned from[4];
#pragma unroll
            for (unsigned p = 0; p < 4; ++p) {
                inside[p] = from_y < full && from_x + p < full;
                from[p] = inside[p] ? (from_y * full + from_x + p) * pixel : 0;
            }
            for (unsigned input_channel = 0; input_channel < channels; ++input_channel) {
                float w[4];
                load<4>(w, kernel + (uint64_t(tap * channels + input_channel) * groups + group) * 4);
#pragma unroll
                for (unsigned p = 0; p < 4; ++p) {
                    float value = inside[p] ? buffers.resized[from[p] + input_channel] : 0.0f;
#pragma unroll
                    for (unsigned i = 0; i < 4; ++i) sums[p][i] += value * w[i];
                }
            }
        }
#pragma unroll
        for (unsigned p = 0; p < 4; ++p) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
                unsigned c = group * 4 + i, position = y * full + left + p;
                if (left + p < full && c < channels) {
                    float value = buffers.resized[position * pixel + c] * (1.0f - ratio) + sums[p][i] * ratio;
                    buffers.map[position * channels + c] += SIGN * value;
                }
            }
        }
    }
    __syncthreads();
}

// Area average: the mean of channel c of the map over the window of one cell of a smaller grid.
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

// codes: [B, L]; rows in float and in T (either may be null): [B, first_rows + L - first, C], of which the
// first `first_rows` of each sample are set to zero. A scale's rows are the sum of all coarser scales and,
// with `inclusive`, of the scale's own codes.
template <class T>
__device__ __forceinline__ void pyramid_input(
    float *rows_f32, T *rows, float *workspace, const uint32_t *codes, const Tables &tables, unsigned tokens,
    unsigned first_rows, unsigned inclusive, unsigned row_floats, unsigned workspace_floats) {
    DYNAMIC_SHARED(float, shared);
    Buffers buffers = carve_buffers(
        workspace == nullptr ? shared : workspace + uint64_t(blockIdx.x) * workspace_floats, tables,
        row_floats);
    unsigned channels = tables.channels, full = tables.side, first = tables.sides[0] * tables.sides[0];
    uint64_t row = uint64_t(blockIdx.x) * (first_rows + tokens - first);
    codes += uint64_t(blockIdx.x) * tokens;
    for (unsigned at = threadIdx.x; at < full * full * channels; at += THREADS) buffers.map[at] = 0.0f;
    for (unsigned at = threadIdx.x; at < first_rows * channels; at += THREADS) {
        if (rows_f32 != nullptr) rows_f32[row * channels + at] = 0.0f;
        if (rows != nullptr) rows[row * channels + at] = from_float<T>(0.0f);
    }
    row += first_rows;
    __syncthreads();
    unsigned before = inclusive ? 0 : 1;
    for (unsigned scale = 0; scale + before < tables.scales; ++scale) {
        add_scale<1>(buffers, tables, codes, scale);
        codes += tables.sides[scale] * tables.sides[scale];
        if (scale + before == 0) continue;
        unsigned side = tables.sides[scale + before];
        for (unsigned at = threadIdx.x; at < side * side * channels; at += THREADS) {
            float value = cell_mean(buffers.map, full, side, channels, at / channels, at % channels);
            if (rows_f32 != nullptr) rows_f32[row * channels + at] = value;
            if (rows != nullptr) rows[row * channels + at] = from_float<T>(value);
        }
        row += side * side;
        __syncthreads();
    }
}

// The nearest code of each of `cells` rows `z` [cells, 4 groups] by |z|^2 + |e|^2 - 2 <z, e>; ties go to the
// first. Blocks of 64 codes are distributed over the warps, each of which goes through all rows, 8 at a time.
// `packed`: the codebook as [blocks, 4 groups, 64], with |e|^2 in `norms`, infinite for padding. `scratch`:
// 17 floats per row.
__device__ __forceinline__ void nearest(
    uint32_t *codes, float *scratch, const float *z, const float *packed, const float *norms, unsigned cells,
    const Tables &tables) {
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, width = tables.groups() * 4;
    unsigned blocks = (tables.codes + CODES - 1) / CODES;
    float *lengths = scratch, *distances = scratch + cells;
    auto *candidates = reinterpret_cast<uint32_t *>(distances + WARPS * cells);
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
                candidates[warp * cells + row + r] = best_code[r];
            }
        }
    }
    __syncthreads();
    for (unsigned cell = threadIdx.x; cell < cells; cell += THREADS) {
        float best = distances[cell];
        unsigned code = candidates[cell];
        for (unsigned other = 1; other < WARPS; ++other) {
            float distance = distances[other * cells + cell];
            unsigned candidate = candidates[other * cells + cell];
            if (distance < best || (distance == best && candidate < code)) {
                best = distance;
                code = candidate;
            }
        }
        // If every distance overflows to infinity, no code was found.
        codes[cell] = code < tables.codes ? code : 0;
    }
    __syncthreads();
}

// features: [B, C, H, H] in float; codes: [B, L].
__device__ __forceinline__ void quantize(
    uint32_t *codes, float *workspace, const float *features, const float *packed, const float *norms,
    const Tables &tables, unsigned tokens, unsigned row_floats, unsigned workspace_floats) {
    DYNAMIC_SHARED(float, shared);
    Buffers buffers = carve_buffers(
        workspace == nullptr ? shared : workspace + uint64_t(blockIdx.x) * workspace_floats, tables,
        row_floats);
    unsigned channels = tables.channels, full = tables.side, pixels = full * full;
    unsigned width = tables.groups() * 4;
    features += uint64_t(blockIdx.x) * pixels * channels;
    codes += uint64_t(blockIdx.x) * tokens;
    for (unsigned at = threadIdx.x; at < pixels * channels; at += THREADS) {
        float value = features[at];
        if (!(fabsf(value) < INFINITY)) TRAP("a feature is not finite");
        buffers.map[at % pixels * channels + at / pixels] = value;
    }
    __syncthreads();
    for (unsigned scale = 0; scale < tables.scales; ++scale) {
        unsigned side = tables.sides[scale], cells = side * side;
        for (unsigned at = threadIdx.x; at < cells * width; at += THREADS) {
            unsigned c = at % width;
            buffers.resized[at] =
                c < channels ? cell_mean(buffers.map, full, side, channels, at / width, c) : 0.0f;
        }
        __syncthreads();
        nearest(buffers.codes, buffers.rows, buffers.resized, packed, norms, cells, tables);
        for (unsigned cell = threadIdx.x; cell < cells; cell += THREADS) codes[cell] = buffers.codes[cell];
        codes += cells;
        if (scale + 1 < tables.scales) add_scale<-1>(buffers, tables, buffers.codes, scale);
    }
}

#define PYRAMID_TABLES                                                                                       \
    const float *codebook, const uint32_t *sides, const uint32_t *tap_index, const float *tap_weight,        \
        const float *convolutions, const float *biases, const float *ratios, const uint32_t *phi,            \
        uint32_t scales, uint32_t side, uint32_t channels, uint32_t vocabulary, uint32_t convolution_count
#define PYRAMID_TABLE_VALUES                                                                                 \
    {codebook, sides,  tap_index, tap_weight, convolutions, biases,           ratios,                        \
     phi,      scales, side,      channels,   vocabulary,   convolution_count}

#define PYRAMID_INPUT(T, suffix)                                                                             \
    KERNEL(                                                                                                  \
        pyramid_input_##suffix, THREADS, float *rows_f32, T *rows, float *workspace, const uint32_t *codes,  \
        PYRAMID_TABLES, uint32_t tokens, uint32_t first_rows, uint32_t inclusive, uint32_t row_floats,       \
        uint32_t workspace_floats) {                                                                         \
        pyramid_input(                                                                                       \
            rows_f32, rows, workspace, codes, PYRAMID_TABLE_VALUES, tokens, first_rows, inclusive,           \
            row_floats, workspace_floats);                                                                   \
    }
PYRAMID_INPUT(float, f32)
PYRAMID_INPUT(bf16, bf16)
PYRAMID_INPUT(f16, f16)

KERNEL(
    pyramid_quantize, THREADS, uint32_t *codes, float *workspace, const float *features, const float *packed,
    const float *norms, PYRAMID_TABLES, uint32_t tokens, uint32_t row_floats, uint32_t workspace_floats) {
    quantize(
        codes, workspace, features, packed, norms, PYRAMID_TABLE_VALUES, tokens, row_floats,
        workspace_floats);
}
