// What the attention kernels share: which block does what, tiles of 16-bit numbers in shared memory, and the way back
// through rotary positions and l2-normalisation.
//
// Logits are powers of two: logit2 = factor log2(e) q^ k^, with q^ and k^ turned and normalised. For each row the
// forward keeps a shift, so that the probability of a key is 2^(logit2 - shift).
#pragma once
#include "portable.cuh"

#include <type_traits>

constexpr float LOG2_E = 1.44269504088896341f;
// The released bound on the logarithm of a head's scale, ln 100, and the floor of a vector's length.
constexpr float LARGEST_LOG_SCALE = 4.60517018598809137f;
constexpr float SHORTEST = 1e-12f;
// Keys of a tile, and queries of a tile where keys are kept.
constexpr unsigned TILE = 64;
// Samples and heads whose blocks run near each other: few enough that their keys and values stay in the L2 (64 heads of
// 680 tokens and 64 channels are 11 MB), enough to fill a card.
constexpr unsigned GROUP = 64;

struct Place {
    // Sample and head, as sample * heads + head, and both apart.
    unsigned task, sample, head, tile;
};

// Block number to work: groups of GROUP tasks, within a group all tasks of tile 0, then of tile 1, and so on.
__device__ __forceinline__ Place place_of(unsigned block, unsigned tasks, unsigned tiles, unsigned heads) {
    unsigned group = block / (GROUP * tiles), first = group * GROUP;
    unsigned size = min(GROUP, tasks - first), within = block - first * tiles;
    unsigned task = first + within % size;
    return {task, task / heads, task % heads, within / size};
}

// Angles of the rotary positions, [L, half] each; none if `cosine` is null.
struct Rotary {
    const float *cosine, *sine;
    unsigned half;
};

// The positions of queries that are the last of as many tokens as there are keys.
__device__ __forceinline__ Rotary last_rows(Rotary rotary, unsigned queries, unsigned keys) {
    if (rotary.cosine == nullptr) return rotary;
    uint64_t first = uint64_t(keys - queries) * rotary.half;
    return {rotary.cosine + first, rotary.sine + first, rotary.half};
}

// The factor on the logits, learned (its logarithm, per head) or 0.25/sqrt(D).
__device__ __forceinline__ float factor_of(const float *log_scale, unsigned head, float fixed) {
    if (log_scale == nullptr) return fixed;
    // Written so that not a number stays what it is.
    return expf(log_scale[head] > LARGEST_LOG_SCALE ? LARGEST_LOG_SCALE : log_scale[head]);
}

// How many keys a query sees, of `keys`.
__device__ __forceinline__ unsigned visible_of(const uint32_t *visible, unsigned query, unsigned keys) {
    return visible == nullptr ? keys : min(visible[query], keys);
}

// Which of the 32 keys from `first` on the mask of a sample lets be seen, a bit each; called by whole warps.
__device__ __forceinline__ unsigned seen_keys(const uint32_t *mask, unsigned first, unsigned keys) {
    unsigned key = first + threadIdx.x % WARP;
    return __ballot_sync(ALL_LANES, key < keys && (mask == nullptr || mask[key] == 1));
}

// The number of tiles of TILE queries, from the first on, that see none of the keys from `key` on; called by whole
// warps.
__device__ __forceinline__ unsigned
blind_tiles(const uint32_t *visible, unsigned key, unsigned queries, unsigned keys, unsigned tiles) {
    unsigned blind = 0;
    for (unsigned first = 0; first < tiles; first += WARP) {
        unsigned tile = first + threadIdx.x % WARP, last = min(tile * TILE + TILE, queries) - 1;
        unsigned votes = __ballot_sync(ALL_LANES, tile < tiles && visible_of(visible, last, keys) <= key);
        blind += __popc(votes);
    }
    return blind;
}

// Sums over lanes whose numbers differ only in the bits from WIDTH on and below LIMIT.
template <unsigned LIMIT, unsigned WIDTH = 1> __device__ __forceinline__ float lanes_sum(float value) {
#pragma unroll
    for (unsigned other = LIMIT / 2; other >= WIDTH; other /= 2) value += __shfl_xor_sync(ALL_LANES, value, other);
    return value;
}

// What tensor cores work on: a block of 4 warps, each with 16 rows, or with 32 where D leaves registers for it: then
// the right operands that a warp loads are used twice.
constexpr unsigned WARPS = 4, THREADS = WARPS * WARP;
template <unsigned D> constexpr unsigned LEFTS = D <= 64 ? 2 : 1;
template <unsigned D> constexpr unsigned QUERY_ROWS = WARPS * 16 * LEFTS<D>;

// Whether rows are read 16 bytes at a time. Heads of up to 64 channels that are not whole packs of 8 go to the kernels
// for 128 if they are too wide for those for 32: what it takes to read them would cost those for 64 registers.
template <unsigned D> __device__ __forceinline__ bool is_wide(unsigned wide) { return D == 64 || wide != 0; }

// Tiles of 16-bit numbers ---------------------------------------------------------------------------------------------

// Rows of D numbers in shared memory, cut into chunks of 8. Chunks of a row are exchanged so that the 8 rows that
// load_matrices reads at once lie in different banks.
template <unsigned D> struct Tile {
    static constexpr unsigned CHUNKS = D / 8;
    static constexpr unsigned ROWS_A_LINE = CHUNKS < 8 ? 8 / CHUNKS : 1;
    static constexpr unsigned EXCHANGED = CHUNKS < 8 ? CHUNKS - 1 : 7;

    static __device__ __forceinline__ unsigned at(unsigned row, unsigned chunk) {
        return row * D + (chunk ^ (row / ROWS_A_LINE & EXCHANGED)) * 8;
    }
};

// Rows of one head in a source, `stride` numbers apart. `wide`: 16 bytes can be read at once; 8 always can.
template <class T> struct Source {
    T *first;
    unsigned stride, length, head_dim;
    bool wide;

    __device__ __forceinline__ T *at(unsigned row, unsigned chunk) const {
        return first + uint64_t(row) * stride + chunk * 8;
    }
    __device__ __forceinline__ bool has(unsigned row, unsigned chunk) const {
        return row < length && chunk * 8 < head_dim;
    }
    // 8 numbers, zeros past the end.
    __device__ __forceinline__ Pack<std::remove_const_t<T>, 8> read(unsigned row, unsigned chunk) const {
        using Number = std::remove_const_t<T>;
        Pack<Number, 8> pack;
        bool whole = chunk * 8 + 4 < head_dim;
        if (!has(row, chunk)) {
#pragma unroll
            for (unsigned i = 0; i < 8; ++i) pack.value[i] = from_float<Number>(0.0f);
        } else if (wide) {
            pack = *reinterpret_cast<const Pack<Number, 8> *>(at(row, chunk));
        } else {
            auto from = reinterpret_cast<const Pack<Number, 4> *>(at(row, chunk));
            auto low = from[0];
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) pack.value[i] = low.value[i];
            Pack<Number, 4> high;
            if (whole) high = from[1];
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) pack.value[4 + i] = whole ? high.value[i] : from_float<Number>(0.0f);
        }
        return pack;
    }
    __device__ __forceinline__ void write(unsigned row, unsigned chunk, const Pack<T, 8> &pack) const {
        if (!has(row, chunk)) return;
        if (wide) {
            *reinterpret_cast<Pack<T, 8> *>(at(row, chunk)) = pack;
            return;
        }
        auto to = reinterpret_cast<Pack<T, 4> *>(at(row, chunk));
        Pack<T, 4> half;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) half.value[i] = pack.value[i];
        to[0] = half;
        if (chunk * 8 + 4 >= head_dim) return;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) half.value[i] = pack.value[4 + i];
        to[1] = half;
    }
};

// Starts copying ROWS rows from `row` on into a tile; rows and channels past the end become zeros.
template <unsigned D, unsigned ROWS, unsigned THREADS, class T>
__device__ __forceinline__ void start_copy(T *tile, const Source<const T> &source, unsigned row) {
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS, COUNT = ROWS * CHUNKS;
#pragma unroll
    for (unsigned from = 0; from < COUNT; from += THREADS) {
        unsigned at = from + threadIdx.x, chunk = at % CHUNKS, to = Tile<D>::at(at / CHUNKS, chunk);
        if (COUNT % THREADS != 0 && at >= COUNT) break;
        if (source.wide) {
            bool keep = source.has(row + at / CHUNKS, chunk);
            copy_16_async(tile + to, keep ? source.at(row + at / CHUNKS, chunk) : source.first, keep);
        } else {
            *reinterpret_cast<Pack<T, 8> *>(tile + to) = source.read(row + at / CHUNKS, chunk);
        }
    }
}

// Operands and results of mma_16x8x16 ----------------------------------------------------------------------------------

// The left operand: 16 rows from `row` on, channels 16 step .. 16 step + 15.
template <unsigned D, class T>
__device__ __forceinline__ void load_left(uint32_t (&to)[4], const T *tile, unsigned row, unsigned step) {
    unsigned lane = threadIdx.x % WARP;
    load_matrices(to, tile + Tile<D>::at(row + lane % 16, 2 * step + lane / 16));
}

// The right operand for products along channels: 16 rows of the tile become 2 times 8 columns.
template <unsigned D, class T>
__device__ __forceinline__ void load_columns(uint32_t (&to)[4], const T *tile, unsigned row, unsigned step) {
    unsigned lane = threadIdx.x % WARP;
    load_matrices(to, tile + Tile<D>::at(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}

// The right operand for products along rows: 16 rows are summed over; channels 16 pair .. 16 pair + 15 become 2 times 8
// columns.
template <unsigned D, class T>
__device__ __forceinline__ void load_summed(uint32_t (&to)[4], const T *tile, unsigned row, unsigned pair) {
    unsigned lane = threadIdx.x % WARP;
    load_matrices<4, true>(to, tile + Tile<D>::at(row + lane % 16, 2 * pair + lane / 16));
}

// Both products with one loaded pair of right operands.
template <class T>
__device__ __forceinline__ void
multiply_pair(float (&first)[4], float (&second)[4], const uint32_t (&left)[4], const uint32_t (&right)[4]) {
    const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
    mma_16x8x16<T>(first, left, low);
    mma_16x8x16<T>(second, left, high);
}

// Two results of 16x8 side by side as a left operand of 16x16.
template <class T>
__device__ __forceinline__ void as_left(uint32_t (&to)[4], const float (&first)[4], const float (&second)[4]) {
    to[0] = pack_two<T>(first[0], first[1]);
    to[1] = pack_two<T>(first[2], first[3]);
    to[2] = pack_two<T>(second[0], second[1]);
    to[3] = pack_two<T>(second[2], second[3]);
}

// The row, of 16, of the numbers 2 pair and 2 pair + 1 of a result that this lane holds; they are in columns
// result_column() and the next.
__device__ __forceinline__ unsigned result_row(unsigned pair) { return threadIdx.x % WARP / 4 + 8 * pair; }
__device__ __forceinline__ unsigned result_column() { return threadIdx.x % 4 * 2; }

// Gradients of 16 rows before turning and normalising, in place, from those after. `hat` are the rows after it as left
// operands, `inverse` each lane's two inverse lengths. Gives the products of gradients and rows, summed over the lanes'
// rows pair by pair: what the gradient of the logarithm of the scale is made of.
template <unsigned D, class T>
__device__ __forceinline__ float
undo(float (&d)[D / 8][4], const uint32_t (&hat)[D / 16][4], const float (&inverse)[2], bool normalise, unsigned row,
     unsigned length, const Rotary &rotary) {
    float total = 0.0f;
#pragma unroll
    for (unsigned pair = 0; pair < 2; ++pair) {
        float along = 0.0f;
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
            float low, high;
            unpack_two<T>(hat[n / 2][n % 2 * 2 + pair], low, high);
            along += d[n][2 * pair] * low + d[n][2 * pair + 1] * high;
        }
        along = lanes_sum<4>(along);
        total += along;
        unsigned token = row + result_row(pair);
        bool turn = rotary.cosine != nullptr && token < length;
        // Below the floor the length is a constant, so nothing of the direction is taken out.
        if (!(inverse[pair] < 1.0f / SHORTEST)) along = 0.0f;
#pragma unroll
        for (unsigned n = 0; n < D / 8; ++n) {
            float &real = d[n][2 * pair], &imaginary = d[n][2 * pair + 1];
            if (normalise) {
                float low, high;
                unpack_two<T>(hat[n / 2][n % 2 * 2 + pair], low, high);
                real = (real - low * along) * inverse[pair];
                imaginary = (imaginary - high * along) * inverse[pair];
            }
            unsigned angle = n * 4 + result_column() / 2;
            if (turn && angle < rotary.half) {
                uint64_t at = uint64_t(token) * rotary.half + angle;
                float cosine = rotary.cosine[at], sine = rotary.sine[at], before = real;
                real = before * cosine + imaginary * sine;
                imaginary = imaginary * cosine - before * sine;
            }
        }
    }
    return total;
}

// Rounds the results of 16 rows into rows `row` .. of a tile of which this warp alone uses them.
template <unsigned D, class T>
__device__ __forceinline__ void put_results(T *tile, const float (&result)[D / 8][4], unsigned row) {
#pragma unroll
    for (unsigned n = 0; n < D / 8; ++n) {
#pragma unroll
        for (unsigned pair = 0; pair < 2; ++pair) {
            auto *to = reinterpret_cast<uint32_t *>(tile + Tile<D>::at(row + result_row(pair), n) + result_column());
            *to = pack_two<T>(result[n][2 * pair], result[n][2 * pair + 1]);
        }
    }
}

// Writes rows `row` .. `row + ROWS - 1` of a tile, by the warp that put them there, to rows `to` .. of the result.
template <unsigned D, unsigned ROWS, class T>
__device__ __forceinline__ void write_rows(const Source<T> &result, const T *tile, unsigned row, unsigned to) {
    constexpr unsigned CHUNKS = Tile<D>::CHUNKS;
#pragma unroll
    for (unsigned from = 0; from < ROWS * CHUNKS; from += WARP) {
        unsigned at = from + threadIdx.x % WARP, chunk = at % CHUNKS;
        result.write(
            to + at / CHUNKS, chunk, *reinterpret_cast<const Pack<T, 8> *>(tile + Tile<D>::at(row + at / CHUNKS, chunk)));
    }
}
