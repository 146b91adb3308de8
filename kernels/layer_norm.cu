// Layer norm without learned scale or shift, with the modulation of each token's level folded in:
//
//     n = (x - mean) / sqrt(variance + epsilon),    y = n (1 + scale[level]) + shift[level]    (or y = n)
//
// and the same of a residual in one pass, x = before + keep[sample] branch being written on the way; backward, the
// residual's own gradient is added to that of the norm.
//
// x, y: [R, C] in T; statistics: [R, 2] (mean, 1/deviation) in float; scale, shift: rows of float, one a level, `stride`
// numbers apart, and those of the next sample `sample_stride` numbers on: 0 where all samples share them. Sums in float,
// in a fixed order. Source: upstream.md, B; the backward is derived in the op's file.
//
// Threads: one warp a row, 8 rows a block. Where a row is a multiple of 16 bytes, up to 1024 numbers are held in registers,
// so that they are read once: forward 2 sizeof(T) bytes a number, backward 3 sizeof(T); of a residual 4 and 5. Of a longer
// row the forward reads what is beyond again, 16 bytes at a time, and the backward all of it. No shared memory.
#include "portable.cuh"

constexpr unsigned ROWS = 8;
constexpr unsigned THREADS = ROWS * WARP;
// Numbers of a row that one lane holds.
constexpr unsigned HELD = 32;

struct Modulation {
    const float *scale, *shift;
};

// N numbers of a modulation's row, 16 bytes at a time where it lies so.
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
    static constexpr unsigned PACKS = HELD / PACK<T>;
    // The place of pack `at` of this lane.
    static __device__ __forceinline__ unsigned place(unsigned at) { return (at * WARP + threadIdx.x % WARP) * PACK<T>; }
};

__device__ __forceinline__ Modulation
modulation_of(
    const float *scale, const float *shift, const uint32_t *levels, unsigned row, unsigned tokens, unsigned stride,
    unsigned sample_stride) {
    if (scale == nullptr) return {nullptr, nullptr};
    uint64_t from = uint64_t(levels[row % tokens]) * stride + uint64_t(row / tokens) * sample_stride;
    return {scale + from, shift == nullptr ? nullptr : shift + from};
}

// What was computed from 16 bytes is not kept beyond here, but computed again: as floats, 16-bit numbers would need twice the
// registers.
template <class T> __device__ __forceinline__ void forget(Pack<T, PACK<T>> &pack) {
#if defined(__CUDACC__)
    uint32_t(&words)[4] = reinterpret_cast<uint32_t(&)[4]>(pack);
    asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
#endif
}

// What a residual adds to the norm's arguments. `keep` is null for 1.
template <class T> struct Branch {
    const T *branch;
    const float *keep;
    unsigned rows_a_sample;

    __device__ __forceinline__ float factor(unsigned row) const {
        return keep == nullptr ? 1.0f : keep[row / rows_a_sample];
    }
};

// before + keep branch as it is stored; a branch that is dropped may hold anything.
template <class T> __device__ __forceinline__ float joined(float before, float branch, float factor) {
    return factor == 0.0f ? before : to_float(from_float<T>(before + factor * branch));
}

// With RESIDUAL, `x` is what was there before the branch, and `sum` [R, C] receives what is normalised.
template <bool RESIDUAL, class T>
__device__ __forceinline__ void layer_norm_forward(
    T *sum_to, T *y, float *statistics, const T *x, Branch<T> residual, const float *scale, const float *shift,
    const uint32_t *levels, unsigned rows, unsigned channels, unsigned tokens, unsigned stride, unsigned sample_stride,
    float epsilon) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Whole warps leave: the sums below are within one.
    if (row >= rows) return;
    const T *from = x + uint64_t(row) * channels;
    T *to = y + uint64_t(row) * channels;
    Modulation change = modulation_of(scale, shift, levels, row, tokens, stride, sample_stride);
    float share = 1.0f / float(channels), mean, inverse;
    const T *branch = RESIDUAL ? residual.branch + uint64_t(row) * channels : from;
    T *joint = RESIDUAL ? sum_to + uint64_t(row) * channels : to;
    float factor = RESIDUAL ? residual.factor(row) : 0.0f;

    if (packs(from, channels) && packs(to, channels) && packs(branch, channels) && packs(joint, channels)) {
        constexpr unsigned PACKS = Rows<T>::PACKS;
        using Numbers = Pack<T, PACK<T>>;
        const T *stored = RESIDUAL ? joint : from;
        Numbers held[PACKS], added[RESIDUAL ? PACKS : 1];
        // Calls work(c, numbers) for each of the lane's places c that are not held.
        auto each_further = [&](const T *source, auto work) {
            for (unsigned c = Rows<T>::place(PACKS); c < channels; c += WARP * PACK<T>) {
                Numbers numbers = *reinterpret_cast<const Numbers *>(source + c);
                work(c, numbers);
            }
        };
        // The same for all of its places.
        auto each = [&](auto work) {
#pragma unroll
            for (unsigned at = 0; at < PACKS; ++at) {
                if (Rows<T>::place(at) < channels) work(Rows<T>::place(at), held[at]);
            }
            each_further(stored, work);
        };
        // All that is held is on its way before the first of it is looked at.
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::place(at);
            if (c < channels) {
                held[at] = *reinterpret_cast<const Numbers *>(from + c);
                if constexpr (RESIDUAL) added[at] = *reinterpret_cast<const Numbers *>(branch + c);
            }
        }
        if constexpr (RESIDUAL) {
            auto join = [&](unsigned c, Numbers &numbers, const Numbers &more) {
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    float sum = joined<T>(to_float(numbers.value[i]), to_float(more.value[i]), factor);
                    numbers.value[i] = from_float<T>(sum);
                }
                *reinterpret_cast<Numbers *>(joint + c) = numbers;
            };
#pragma unroll
            for (unsigned at = 0; at < PACKS; ++at) {
                if (Rows<T>::place(at) < channels) join(Rows<T>::place(at), held[at], added[at]);
            }
            each_further(from, [&](unsigned c, Numbers &numbers) {
                join(c, numbers, *reinterpret_cast<const Numbers *>(branch + c));
            });
        }
        float sum = 0.0f, squares = 0.0f;
        each([&](unsigned, const Numbers &numbers) {
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) sum += to_float(numbers.value[i]);
        });
        mean = warp_sum(sum) * share;
        each([&](unsigned, Numbers &numbers) {
            forget(numbers);
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) {
                float apart = to_float(numbers.value[i]) - mean;
                squares += apart * apart;
            }
        });
        inverse = rsqrtf(warp_sum(squares) * share + epsilon);
        each([&](unsigned c, Numbers &numbers) {
            forget(numbers);
            float values[PACK<T>];
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) values[i] = (to_float(numbers.value[i]) - mean) * inverse;
            if (change.scale != nullptr) {
                float scales[PACK<T>], shifts[PACK<T>];
                load_row(scales, change.scale + c);
                load_row(shifts, change.shift + c);
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) values[i] = values[i] * (1.0f + scales[i]) + shifts[i];
            }
            store<PACK<T>>(to + c, values);
        });
    } else {
        float sum = 0.0f, squares = 0.0f;
        if constexpr (RESIDUAL) {
            // Each lane reads again only what it has written itself.
            for (unsigned c = lane; c < channels; c += WARP) {
                joint[c] = from_float<T>(joined<T>(to_float(from[c]), to_float(branch[c]), factor));
            }
            from = joint;
        }
        for (unsigned c = lane; c < channels; c += WARP) sum += to_float(from[c]);
        mean = warp_sum(sum) * share;
        for (unsigned c = lane; c < channels; c += WARP) {
            float value = to_float(from[c]) - mean;
            squares += value * value;
        }
        inverse = rsqrtf(warp_sum(squares) * share + epsilon);
        for (unsigned c = lane; c < channels; c += WARP) {
            float value = (to_float(from[c]) - mean) * inverse;
            if (change.scale != nullptr) value = value * (1.0f + change.scale[c]) + change.shift[c];
            to[c] = from_float<T>(value);
        }
    }
    if (lane == 0) {
        statistics[2 * uint64_t(row)] = mean;
        statistics[2 * uint64_t(row) + 1] = inverse;
    }
}

// dx = (g - mean(g) - n mean(g n)) / deviation with g = dy (1 + scale). With RESIDUAL, `d_residual` [R, C] (which may be
// dx) is added to it, and keep dx goes to `d_branch`, if that is not null.
template <bool RESIDUAL, class T>
__device__ __forceinline__ void layer_norm_backward(
    T *dx, T *d_branch, const T *d_residual, const T *dy, const T *x, Branch<T> residual, const float *statistics,
    const float *scale, const uint32_t *levels, unsigned rows, unsigned channels, unsigned tokens, unsigned stride,
    unsigned sample_stride) {
    unsigned row = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const T *from = x + uint64_t(row) * channels, *d_from = dy + uint64_t(row) * channels;
    T *to = dx + uint64_t(row) * channels;
    const float *factor = modulation_of(scale, nullptr, levels, row, tokens, stride, sample_stride).scale;
    float mean = statistics[2 * uint64_t(row)], inverse = statistics[2 * uint64_t(row) + 1];
    float share = 1.0f / float(channels), sum = 0.0f, along = 0.0f;
    const T *beside = RESIDUAL ? d_residual + uint64_t(row) * channels : from;
    T *branch = RESIDUAL && d_branch != nullptr ? d_branch + uint64_t(row) * channels : nullptr;
    float keep = RESIDUAL ? residual.factor(row) : 1.0f;

    if (packs(from, channels) && packs(d_from, channels) && packs(to, channels) && packs(beside, channels) &&
        packs(branch, channels) && channels <= HELD * WARP) {
        constexpr unsigned PACKS = Rows<T>::PACKS;
        using Numbers = Pack<T, PACK<T>>;
        Numbers held[PACKS], d_held[PACKS], added[RESIDUAL ? PACKS : 1];
        // All is on its way before the first of it is looked at, and before anything is written, as dx may be d_residual.
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::place(at);
            if (c < channels) {
                held[at] = *reinterpret_cast<const Numbers *>(from + c);
                d_held[at] = *reinterpret_cast<const Numbers *>(d_from + c);
                if constexpr (RESIDUAL) added[at] = *reinterpret_cast<const Numbers *>(beside + c);
            }
        }
        // n and g of one pack.
        auto both = [&](unsigned at, unsigned c, float(&n)[PACK<T>], float(&g)[PACK<T>]) {
            float factors[PACK<T>];
            if (factor != nullptr) load_row(factors, factor + c);
#pragma unroll
            for (unsigned i = 0; i < PACK<T>; ++i) {
                n[i] = (to_float(held[at].value[i]) - mean) * inverse;
                g[i] = to_float(d_held[at].value[i]);
                if (factor != nullptr) g[i] *= 1.0f + factors[i];
            }
        };
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::place(at);
            if (c < channels) {
                float n[PACK<T>], g[PACK<T>];
                both(at, c, n, g);
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    sum += g[i];
                    along += g[i] * n[i];
                }
            }
        }
        sum = warp_sum(sum) * share;
        along = warp_sum(along) * share;
#pragma unroll
        for (unsigned at = 0; at < PACKS; ++at) {
            unsigned c = Rows<T>::place(at);
            if (c < channels) {
                forget(held[at]);
                forget(d_held[at]);
                if constexpr (RESIDUAL) forget(added[at]);
                float n[PACK<T>], g[PACK<T>];
                both(at, c, n, g);
#pragma unroll
                for (unsigned i = 0; i < PACK<T>; ++i) {
                    g[i] = (g[i] - sum - n[i] * along) * inverse;
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
            along += g * (to_float(from[c]) - mean) * inverse;
        }
        sum = warp_sum(sum) * share;
        along = warp_sum(along) * share;
        for (unsigned c = lane; c < channels; c += WARP) {
            float g = to_float(d_from[c]) * (factor == nullptr ? 1.0f : 1.0f + factor[c]);
            float n = (to_float(from[c]) - mean) * inverse;
            float d = (g - sum - n * along) * inverse;
            if (RESIDUAL) d += to_float(beside[c]);
            to[c] = from_float<T>(d);
            if (RESIDUAL && branch != nullptr) branch[c] = from_float<T>(keep * d);
        }
    }
}

// The modulation's gradient, for each sample and level: d_scale = sum of dy n and d_shift = sum of dy over the sample's
// tokens of the level, in the order of the tokens. Block: 128 channels of one level (y) of one sample (z). `starts` are
// the first tokens of the levels and, last, the number of tokens. Output [B, levels, 2, C] in float.
// Without statistics, n is x: the gradient of a gate, or of a modulation that stands by itself.
constexpr unsigned COLUMNS = 128;

template <class T>
__device__ __forceinline__ void modulation_backward(
    float *d_modulation, const T *dy, const T *x, const float *statistics, const uint32_t *starts, unsigned channels,
    unsigned tokens) {
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

#define LAYER_NORM(T, suffix)                                                                                          \
    KERNEL(                                                                                                            \
        layer_norm_forward_##suffix, THREADS, T *y, float *statistics, const T *x, const float *scale,                 \
        const float *shift, const uint32_t *levels, uint32_t rows, uint32_t channels, uint32_t tokens,                 \
        uint32_t stride, uint32_t sample_stride, float epsilon) {                                                      \
        layer_norm_forward<false, T>(                                                                                  \
            nullptr, y, statistics, x, {}, scale, shift, levels, rows, channels, tokens, stride, sample_stride,        \
            epsilon);                                                                                                  \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        residual_layer_norm_forward_##suffix, THREADS, T *sum, T *y, float *statistics, const T *x, const T *branch,   \
        const float *keep, const float *scale, const float *shift, const uint32_t *levels, uint32_t rows,              \
        uint32_t rows_a_sample, uint32_t channels, uint32_t tokens, uint32_t stride, uint32_t sample_stride,           \
        float epsilon) {                                                                                               \
        layer_norm_forward<true, T>(                                                                                   \
            sum, y, statistics, x, {branch, keep, rows_a_sample}, scale, shift, levels, rows, channels, tokens,        \
            stride, sample_stride, epsilon);                                                                           \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        residual_layer_norm_backward_##suffix, THREADS, T *dx, T *d_branch, const T *d_residual, const T *dy,          \
        const T *sum, const float *keep, const float *statistics, const float *scale, const uint32_t *levels,          \
        uint32_t rows, uint32_t rows_a_sample, uint32_t channels, uint32_t tokens, uint32_t stride,                    \
        uint32_t sample_stride) {                                                                                      \
        layer_norm_backward<true, T>(                                                                                  \
            dx, d_branch, d_residual, dy, sum, {nullptr, keep, rows_a_sample}, statistics, scale, levels, rows,        \
            channels, tokens, stride, sample_stride);                                                                  \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        layer_norm_backward_##suffix, THREADS, T *dx, const T *dy, const T *x, const float *statistics,                \
        const float *scale, const uint32_t *levels, uint32_t rows, uint32_t channels, uint32_t tokens,                 \
        uint32_t stride, uint32_t sample_stride) {                                                                     \
        layer_norm_backward<false, T>(                                                                                 \
            dx, nullptr, nullptr, dy, x, {}, statistics, scale, levels, rows, channels, tokens, stride,                \
            sample_stride);                                                                                            \
    }                                                                                                                  \
    KERNEL(                                                                                                            \
        modulation_backward_##suffix, COLUMNS, float *d_modulation, const T *dy, const T *x, const float *statistics,  \
        const uint32_t *starts, uint32_t channels, uint32_t tokens) {                                                  \
        modulation_backward(d_modulation, dy, x, statistics, starts, channels, tokens);                                \
    }
LAYER_NORM(float, f32)
LAYER_NORM(bf16, bf16)
LAYER_NORM(f16, f16)
