// Layer norm without learned scale or shift, with the modulation of each token's level folded in (AdaLN), and
// the same fused with the residual before it:
//
//     n = (x - mean) / sqrt(variance + epsilon),    y = n (1 + scale[level]) + shift[level]    (or y = n)
//     x = before + keep[sample] branch
//     dx = (g - mean(g) - n mean(g n)) / sqrt(variance + epsilon),    g = dy (1 + scale[level])
//
// Shapes: x, y [R, C] in T, R = B L; statistics [R, 2] (mean, 1 / deviation) in float; scale, shift: one row
// of C floats per level at row stride `stride`, and per sample at stride `sample_stride`, 0 if all samples
// share them.
// Threads: one warp per row, 8 rows per block.
// Memory: rows that are multiples of 16 bytes are read 16 bytes at a time, the first 1024 values into
// registers, so that they are read once: forward 2 sizeof(T) bytes per value, backward 3 sizeof(T); with the
// residual 4 and 5. Of a longer row, the forward reads the values past 1024 again, and the backward the whole
// row. No shared memory.
// Precision: statistics and sums in f32, two-pass variance.
// Determinism: one order per sum, lanes by butterfly shuffles.
// Reference: src/engine/ops/layer_norm/cpu.rs. Source: layer norm (arXiv:1607.06450); AdaLN
// (arXiv:2212.09748); docs/upstream.md, B1 and B7.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;
// Values of a row that a lane keeps in registers.
constexpr unsigned VALUES_PER_LANE = 32;

struct Modulation {
    const float *scale, *shift;
};

// N values of a modulation row, 16 bytes at a time if aligned.
template <unsigned N> __device__ __forceinline__ void load_row(float (&to)[N], const float *from) {
    if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
        for (unsigned four = 0; four < N; four += 4) {
            float values[4];
            load<4>(values, from + four);
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) to[four + i] = values[i];
        }
    } else {
#pragma unroll
        for (unsigned i = 0; i < N; ++i) to[i] = from[i];
    }
}

template <class T> struct Rows {
    static constexpr unsigned PACKS = VALUES_PER_LANE / PACK<T>;
    // The channel of this lane's pack `at`.
    static __device__ __forceinline__ unsigned offset(unsigned at) {
        return (at * WARP + threadIdx.x % WARP) * PACK<T>;
    }
};

__device__ __forceinline__ Modulation modulation_row(
    const float *scale, const float *shift, const uint32_t *levels, unsigned row, unsigned tokens,
    unsigned stride, unsigned sample_stride) {
    if (scale == nullptr) return {nullptr, nullptr};
    uint64_t from = uint64_t(levels[row % tokens]) * stride + uint64_t(row / tokens) * sample_stride;
    return {scale + from, shift == nullptr ? nullptr : shift + from};
}

// An optimization barrier: the compiler must convert the pack to f32 again rather than keep the f32 values
// alive, which for 16-bit types would take twice the registers.
template <class T> __device__ __forceinline__ void make_opaque(Pack<T, PACK<T>> &pack) {
#if defined(__CUDACC__)
    uint32_t (&words)[4] = reinterpret_cast<uint32_t (&)[4]>(pack);
    asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
#endif
}

// The residual branch. `keep` is null for 1.
template <class T> struct Branch {
    const T *branch;
    const float *keep;
    unsigned rows_per_sample;

    __device__ __forceinline__ float factor(unsigned row) const {
        return keep == nullptr ? 1.0f : keep[row / rows_per_sample];
    }
};

// before + factor branch, rounded as it is stored. A dropped branch may hold NaN or Inf.
template <class T> __device__ __forceinline__ float add_branch(float before, float branch, float factor) {
    return factor == 0.0f ? before : to_float(from_float<T>(before + factor * branch));
}

// With RESIDUAL, `x` is the value before the branch, and `sum_to` [R, C] receives the input of the norm.
template <bool RESIDUAL, class T>
__device__ __forceinline__ void layer_norm_forward(
    T *sum_to, T *y, float *statistics, const T *x, Branch<T> residual, const float *scale,
    const float *shift, const uint32_t *levels, unsigned rows, unsigned channels, unsigned tokens,
    unsigned stride, unsigned sample_stride, float epsilon) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps return: the sums below are within a warp.
    if (row >= rows) return;
    const T *from = x + uint64_t(row) * channels;
    T *to = y + uint64_t(row) * channels;
    Modulation modulation = modulation_row(scale, shift, levels, row, tokens, stride, sample_stride);
    float inverse_channels = 1.0f / float(channels), mean, inverse;
    const T *branch = RESIDUAL ? residual.branch + uint64_t(row) * channels : from;
    T *sum_row = RESIDUAL ? sum_to + uint64_t(row) * channels : to;
    float factor = RESIDUAL ? residual.factor(row) : 0.0f;

    if (packs(from, channels) && packs(to, channels) && packs(branch, channels) && packs(sum_row, channels)) {
        constexpr unsigned PACKS = Rows<T>::PACKS;
        using RowPack = Pack<T, PACK<T>>;
        const T *stored = RESIDUAL ? sum_row : from;
        RowPack cached[PACKS], added[RESIDUAL ? PACKS : 1];
        // Calls work(c, pack) for each pack of the lane that is not in registers.
        auto each_uncached = [&](const T *source, auto work) {
            for (unsigned c = Rows<T>::offset(PACKS); c < channels; c += WARP * PACK<T>) {
                RowPack pack = *reinterpret_cast<const RowPack *>(source + c);
                work(c, pack);
            }
        };
        // Calls work(c, pack) for every pack of the lane.
        auto each = [&](auto work) {
#pragma unroll
            for (unsigned at = 0; at < PACKS; ++at) {
                if (Rows<T>::offset(at) < channels) work(Rows<T>::offset(at), cached[at]);
            }
            each_uncached(stored, work);
        };
        // All loads are issued before the first value is used.
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::offset(at);
            if (c < channels) {
                cached[at] = *reinterpret_cast<const RowPack *>(from + c);
                if constexpr (RESIDUAL) added[at] = *reinterpret_cast<const RowPack *>(branch + c);
            }
        }
        if constexpr (RESIDUAL) {
            auto add = [&](unsigned c, RowPack &pack, const RowPack &more) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    float sum = add_branch<T>(to_float(pack.value[i]), to_float(more.value[i]), factor);
                    pack.value[i] = from_float<T>(sum);
                }
                *reinterpret_cast<RowPack *>(sum_row + c) = pack;
            };
#pragma unroll
            for (unsigned at = 0; at < PACKS; ++at) {
                if (Rows<T>::offset(at) < channels) add(Rows<T>::offset(at), cached[at], added[at]);
            }
            each_uncached(from, [&](unsigned c, RowPack &pack) {
                add(c, pack, *reinterpret_cast<const RowPack *>(branch + c));
            });
        }
        float sum = 0.0f, squares = 0.0f;
        each([&](unsigned, const RowPack &pack) {
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) sum += to_float(pack.value[i]);
        });
        mean = warp_sum(sum) * inverse_channels;
        each([&](unsigned, RowPack &pack) {
            make_opaque(pack);
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) {
                float difference = to_float(pack.value[i]) - mean;
                squares += difference * difference;
            }
        });
        inverse = rsqrtf(warp_sum(squares) * inverse_channels + epsilon);
        each([&](unsigned c, RowPack &pack) {
            make_opaque(pack);
            float values[PACK<T>];
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) values[i] = (to_float(pack.value[i]) - mean) * inverse;
            if (modulation.scale != nullptr) {
                float scales[PACK<T>], shifts[PACK<T>];
                load_row(scales, modulation.scale + c);
                load_row(shifts, modulation.shift + c);
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) values[i] = values[i] * (1.0f + scales[i]) + shifts[i];
            }
            store<PACK<T>>(to + c, values);
        });
    } else {
        float sum = 0.0f, squares = 0.0f;
        if constexpr (RESIDUAL) {
            // Each lane reads again only what it wrote itself.
            for (unsigned c = lane; c < channels; c += WARP) {
                sum_row[c] = from_float<T>(add_branch<T>(to_float(from[c]), to_float(branch[c]), factor));
            }
            from = sum_row;
        }
        for (unsigned c = lane; c < channels; c += WARP) sum += to_float(from[c]);
        mean = warp_sum(sum) * inverse_channels;
        for (unsigned c = lane; c < channels; c += WARP) {
            float value = to_float(from[c]) - mean;
            squares += value * value;
        }
        inverse = rsqrtf(warp_sum(squares) * inverse_channels + epsilon);
        for (unsigned c = lane; c < channels; c += WARP) {
            float value = (to_float(from[c]) - mean) * inverse;
            if (modulation.scale != nullptr) {
                value = value * (1.0f + modulation.scale[c]) + modulation.shift[c];
            }
            to[c] = from_float<T>(value);
        }
    }
    if (lane == 0) {
        statistics[2 * uint64_t(row)] = mean;
        statistics[2 * uint64_t(row) + 1] = inverse;
    }
}

// With RESIDUAL, `d_residual` [R, C] (which may be dx) is added to dx, and keep dx goes to `d_branch` unless
// that is null.
template <bool RESIDUAL, class T>
__device__ __forceinline__ void layer_norm_backward(
    T *dx, T *d_branch, const T *d_residual, const T *dy, const T *x, Branch<T> residual,
    const float *statistics, const float *scale, const uint32_t *levels, unsigned rows, unsigned channels,
    unsigned tokens, unsigned stride, unsigned sample_stride) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const T *from = x + uint64_t(row) * channels, *d_from = dy + uint64_t(row) * channels;
    T *to = dx + uint64_t(row) * channels;
    const float *factor = modulation_row(scale, nullptr, levels, row, tokens, stride, sample_stride).scale;
    float mean = statistics[2 * uint64_t(row)], inverse = statistics[2 * uint64_t(row) + 1];
    float inverse_channels = 1.0f / float(channels), sum = 0.0f, dot = 0.0f;
    const T *d_residual_row = RESIDUAL ? d_residual + uint64_t(row) * channels : from;
    T *branch = RESIDUAL && d_branch != nullptr ? d_branch + uint64_t(row) * channels : nullptr;
    float keep = RESIDUAL ? residual.factor(row) : 1.0f;

    if (packs(from, channels) && packs(d_from, channels) && packs(to, channels) &&
        packs(d_residual_row, channels) && packs(branch, channels) && channels <= VALUES_PER_LANE * WARP) {
        constexpr unsigned PACKS = Rows<T>::PACKS;
        using RowPack = Pack<T, PACK<T>>;
        RowPack cached[PACKS], d_cached[PACKS], added[RESIDUAL ? PACKS : 1];
        // All loads are issued before the first value is used, and before any store, because dx may be
        // d_residual.
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::offset(at);
            if (c < channels) {
                cached[at] = *reinterpret_cast<const RowPack *>(from + c);
                d_cached[at] = *reinterpret_cast<const RowPack *>(d_from + c);
                if constexpr (RESIDUAL) added[at] = *reinterpret_cast<const RowPack *>(d_residual_row + c);
            }
        }
        // n and g of one pack.
        auto both = [&](unsigned at, unsigned c, float (&n)[PACK<T>], float (&g)[PACK<T>]) {
            float factors[PACK<T>];
            if (factor != nullptr) load_row(factors, factor + c);
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) {
                n[i] = (to_float(cached[at].value[i]) - mean) * inverse;
                g[i] = to_float(d_cached[at].value[i]);
                if (factor != nullptr) g[i] *= 1.0f + factors[i];
            }
        };
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::offset(at);
            if (c < channels) {
                float n[PACK<T>], g[PACK<T>];
                both(at, c, n, g);
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    sum += g[i];
                    dot += g[i] * n[i];
                }
            }
        }
        sum = warp_sum(sum) * inverse_channels;
        dot = warp_sum(dot) * inverse_channels;
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::offset(at);
            if (c < channels) {
                make_opaque(cached[at]);
                make_opaque(d_cached[at]);
                if constexpr (RESIDUAL) make_opaque(added[at]);
                float n[PACK<T>], g[PACK<T>];
                both(at, c, n, g);
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    g[i] = (g[i] - sum - n[i] * dot) * inverse;
                    if constexpr (RESIDUAL) g[i] += to_float(added[at].value[i]);
                }
                store<PACK<T>>(to + c, g);
                if (RESIDUAL && branch != nullptr) {
#pragma unroll
                    for (unsigned i = 0; i < PACK<T>; ++i) g[i] *= keep;
                    store<PACK<T>>(branch + c, g);
                }
            }
        }
    } else {
        for (unsigned c = lane; c < channels; c += WARP) {
            float g = to_float(d_from[c]) * (factor == nullptr ? 1.0f : 1.0f + factor[c]);
            sum += g;
            dot += g * (to_float(from[c]) - mean) * inverse;
        }
        sum = warp_sum(sum) * inverse_channels;
        dot = warp_sum(dot) * inverse_channels;
        for (unsigned c = lane; c < channels; c += WARP) {
            float g = to_float(d_from[c]) * (factor == nullptr ? 1.0f : 1.0f + factor[c]);
            float n = (to_float(from[c]) - mean) * inverse;
            float d = (g - sum - n * dot) * inverse;
            if (RESIDUAL) d += to_float(d_residual_row[c]);
            to[c] = from_float<T>(d);
            if (RESIDUAL && branch != nullptr) branch[c] = from_float<T>(keep * d);
        }
    }
}

// The gradient of the modulation per sample and level, over the sample's tokens of the level in order:
//
//     d_scale = sum of dy n,    d_shift = sum of dy
//
// Block: 128 channels (x) of one level (y) of one sample (z). `starts`: the first token of each level, then
// the number of tokens. Output [B, levels, 2, C] in float. Without statistics n is x: the gradient of a gate,
// or of a modulation that does not follow a norm.
constexpr unsigned COLUMNS = 128;

template <class T>
__device__ __forceinline__ void modulation_backward(
    float *d_modulation, const T *dy, const T *x, const float *statistics, const uint32_t *starts,
    unsigned channels, unsigned tokens) {
    unsigned c = blockIdx.x * COLUMNS + threadIdx.x, level = blockIdx.y, sample = blockIdx.z;
    if (c >= channels) return;
    float d_scale = 0.0f, d_shift = 0.0f;
    for (unsigned token = starts[level]; token < starts[level + 1]; ++token) {
        uint64_t row = uint64_t(sample) * tokens + token;
        float d = to_float(dy[row * channels + c]);
        float n = to_float(x[row * channels + c]);
        if (statistics != nullptr) n = (n - statistics[2 * row]) * statistics[2 * row + 1];
        d_scale += d * n;
        d_shift += d;
    }
    uint64_t to = (uint64_t(sample) * gridDim.y + level) * 2 * channels + c;
    d_modulation[to] = d_scale;
    d_modulation[to + channels] = d_shift;
}

#define LAYER_NORM(T, suffix)                                                                                \
    KERNEL(                                                                                                  \
        layer_norm_forward_##suffix, THREADS, T *y, float *statistics, const T *x, const float *scale,       \
        const float *shift, const uint32_t *levels, uint32_t rows, uint32_t channels, uint32_t tokens,       \
        uint32_t stride, uint32_t sample_stride, float epsilon) {                                            \
        layer_norm_forward<false, T>(                                                                        \
            nullptr, y, statistics, x, {}, scale, shift, levels, rows, channels, tokens, stride,             \
            sample_stride, epsilon);                                                                         \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        residual_layer_norm_forward_##suffix, THREADS, T *sum, T *y, float *statistics, const T *x,          \
        const T *branch, const float *keep, const float *scale, const float *shift, const uint32_t *levels,  \
        uint32_t rows, uint32_t rows_per_sample, uint32_t channels, uint32_t tokens, uint32_t stride,        \
        uint32_t sample_stride, float epsilon) {                                                             \
        layer_norm_forward<true, T>(                                                                         \
            sum, y, statistics, x, {branch, keep, rows_per_sample}, scale, shift, levels, rows, channels,    \
            tokens, stride, sample_stride, epsilon);                                                         \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        residual_layer_norm_backward_##suffix, THREADS, T *dx, T *d_branch, const T *d_residual,             \
        const T *dy, const T *sum, const float *keep, const float *statistics, const float *scale,           \
        const uint32_t *levels, uint32_t rows, uint32_t rows_per_sample, uint32_t channels, uint32_t tokens, \
        uint32_t stride, uint32_t sample_stride) {                                                           \
        layer_norm_backward<true, T>(                                                                        \
            dx, d_branch, d_residual, dy, sum, {nullptr, keep, rows_per_sample}, statistics, scale, levels,  \
            rows, channels, tokens, stride, sample_stride);                                                  \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        layer_norm_backward_##suffix, THREADS, T *dx, const T *dy, const T *x, const float *statistics,      \
        const float *scale, const uint32_t *levels, uint32_t rows, uint32_t channels, uint32_t tokens,       \
        uint32_t stride, uint32_t sample_stride) {                                                           \
        layer_norm_backward<false, T>(                                                                       \
            dx, nullptr, nullptr, dy, x, {}, statistics, scale, levels, rows, channels, tokens, stride,      \
            sample_stride);                                                                                  \
    }                                                                                                        \
    KERNEL(                                                                                                  \
        modulation_backward_##suffix, COLUMNS, float *d_modulation, const T *dy, const T *x,                 \
        const float *statistics, const uint32_t *starts, uint32_t channels, uint32_t tokens) {               \
        modulation_backward(d_modulation, dy, x, statistics, starts, channels, tokens);                      \
    }
LAYER_NORM(float, f32)
LAYER_NORM(bf16, bf16)
LAYER_NORM(f16, f16)
