/* All sub-operators of a layer, or of an MLP, in one call, float32: see routed_linear.py and routed_mlp.py for the
 * formulas, activations.py for those of the activations.
 *
 * Inputs are never gathered into a matrix of their own. With many tokens x is turned once, token by token beside each
 * other for every feature, so that the inputs of any sub-operator are rows of it, found by index inside the product; a
 * vector holds tokens, and weights are read where they lie, row-major, and broadcast. Where all sub-operators are narrow,
 * of few inputs, turning x and results would take longer than multiplying: there the weights are turned, a vector holds
 * rows, and inputs are broadcast from where they lie. With few tokens a vector holds weights of one row, read once as
 * they lie, against the gathered inputs of each token.
 *
 * Plain C99 with the vector types and __atomic builtins of gcc and clang: one file serves every processor and torch.
 * Every output is summed by one thread in one order: the same bits for any number of threads.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16, DEEP = 2, TALL = 8, WIDE = 4 };
#elif defined(__AVX__)
enum { LANES = 8, DEEP = 2, TALL = 4, WIDE = 2 };
#else
enum { LANES = 4, DEEP = 2, TALL = 8, WIDE = 4 };
#endif
/* Tokens of a panel, which holds DEEP vectors of every feature; rows of a tile; rows and tokens of a dot block. */
enum { PANEL = DEEP * LANES, TILE = 64, ROWS = 4, FEW = 8 };
/* Inputs of a narrow block at most; tokens for which its weights are turned once, and those of a tile of sums. */
enum { NARROW = 64, STRETCH = 128, ABREAST = 4 };

typedef float vector __attribute__((vector_size(LANES * 4)));
typedef float unaligned __attribute__((vector_size(LANES * 4), aligned(4)));
typedef float four __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Picks lanes of two vectors: gcc knew only a form of its own before 12. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif
typedef int32_t four_lanes __attribute__((vector_size(16)));
typedef int32_t lanes __attribute__((vector_size(LANES * 4)));
#define SHUFFLE4(a, b, ...) SHUFFLE(four_lanes, a, b, __VA_ARGS__)

/* The structure of one layer. */
struct layer {
    const int64_t *blocks;  /* (S, 6) begin of inputs, of outputs, of weight; n; k; 1: consecutive inputs, 2: outputs */
    const int32_t *tiles;   /* (C, 2) block and first of at most TILE rows */
    const int64_t *work;    /* (C + 1,) multiplications of the tiles before */
    const int32_t *inputs;  /* the indices of all blocks, end to end */
    const int32_t *outputs;
    const int32_t *dead;    /* outputs in no block */
    int64_t tiles_count, dead_count, in_features;
    int64_t longest, longest_n; /* of all k and of all n */
    int64_t narrow;             /* whether no k is more than NARROW and all outputs are consecutive */
};

struct call {
    const struct layer *layer;
    const float *x, *weight, *bias, *times; /* bias may be NULL, so may times, of y's shape */
    float *y;
    int64_t tokens, x_row, y_row; /* strides in elements; features are consecutive */
    int64_t parts;                /* in how many the tiles are cut */
    int64_t claimed;
    int32_t activation, failed;
};

INLINE vector load(const float *from) { return *(const unaligned *)from; }

INLINE void store(float *to, vector value) { *(unaligned *)to = value; }

/* The first `count` < LANES elements and zeros: what lies behind may be NaN or nobody's. */
INLINE vector load_some(const float *from, int64_t count) {
#if defined(__AVX512F__)
    return (vector)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#else
    vector value = {0};
    for (int64_t i = 0; i < count; i++)
        value[i] = from[i];
    return value;
#endif
}

INLINE void store_some(float *to, vector value, int64_t count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
#else
    for (int64_t i = 0; i < count; i++)
        to[i] = value[i];
#endif
}

/* a0 b0 a1 b1 .. from the lower halves of both, and from the upper. */
INLINE vector lower(vector a, vector b) {
#if defined(__AVX512F__)
    return SHUFFLE(lanes, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX__)
    return SHUFFLE(lanes, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return SHUFFLE(lanes, a, b, 0, 4, 1, 5);
#endif
}

INLINE vector upper(vector a, vector b) {
#if defined(__AVX512F__)
    return SHUFFLE(lanes, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX__)
    return SHUFFLE(lanes, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return SHUFFLE(lanes, a, b, 2, 6, 3, 7);
#endif
}

/* Rows become columns: log2(LANES) perfect shuffles. */
INLINE void transpose(vector block[LANES]) {
    vector other[LANES];
    UNROLL
    for (int round = 1; round < LANES; round *= 2) {
        UNROLL
        for (int i = 0; i < LANES / 2; i++) {
            other[2 * i] = lower(block[i], block[i + LANES / 2]);
            other[2 * i + 1] = upper(block[i], block[i + LANES / 2]);
        }
        UNROLL
        for (int i = 0; i < LANES; i++)
            block[i] = other[i];
    }
}

INLINE vector either(lanes chosen, vector a, vector b) {
    return (vector)(((lanes)a & chosen) | ((lanes)b & ~chosen));
}

/* exp(x), to 2 units in the last place, infinite from 88.4 on; NaN stays. As 2^n exp(r): n rounded by a large addend. */
INLINE vector exponential(vector x) {
    const vector large = (vector){0} + 12582912.0f, top = (vector){0} + 89.0f, bottom = (vector){0} - 87.0f;
    x = either((lanes)(x > top), top, x);
    x = either((lanes)(x < bottom), bottom, x);
    const vector shifted = x * 1.44269504f + large, n = shifted - large;
    const vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vector sum = r * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    sum = sum * (r * r) + r + 1.0f;
    return sum * (vector)(((lanes)shifted << 23) + 0x3f800000);
}

/* Kinds by their place in ACTIVATIONS of activations.py. */
enum { NONE, RELU, GELU, SILU, GELU_TANH };

INLINE vector activated(const int kind, vector z) {
    if (kind == RELU)
        return either((lanes)(z <= 0.0f), (vector){0}, z);
    if (kind == SILU)
        return z / (1.0f + exponential(-z));
    if (kind == GELU_TANH)
        return z / (1.0f + exponential(-1.59576912f * (z + 0.044715f * z * z * z)));
    /* The tail of the normal distribution by Abramowitz and Stegun 7.1.26, to 1.5e-7. */
    const vector size = either((lanes)(z < 0.0f), -z, z) * 0.707106781f;
    const vector t = 1.0f / (1.0f + 0.3275911f * size);
    vector tail = t * 1.061405429f - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = tail * t * exponential(-size * size) * 0.5f;
    return z * either((lanes)(z < 0.0f), tail, 1.0f - tail);
}

INLINE void activate_as(const int kind, float *values, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        store(values + i, activated(kind, load(values + i)));
    if (i < count)
        store_some(values + i, activated(kind, load_some(values + i, count - i)), count - i);
}

static void activate(int kind, float *values, int64_t count) {
    switch (kind) {
    case RELU:
        activate_as(RELU, values, count);
        break;
    case GELU:
        activate_as(GELU, values, count);
        break;
    case SILU:
        activate_as(SILU, values, count);
        break;
    case GELU_TANH:
        activate_as(GELU_TANH, values, count);
        break;
    }
}

/* panel[feature][token] from x[token][feature]; tokens beyond the last are zeros. */
static void turn(const struct call *call, int64_t first, int64_t width, float *panel) {
    const int64_t features = call->layer->in_features, left = call->tokens - first;
    for (int64_t feature = 0; feature < features; feature += LANES) {
        const int64_t count = features - feature < LANES ? features - feature : LANES;
        for (int64_t token = 0; token < width; token += LANES) {
            vector block[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++) {
                const float *from = call->x + (first + token + i) * call->x_row + feature;
                block[i] = token + i >= left ? (vector){0} : count == LANES ? load(from) : load_some(from, count);
            }
            transpose(block);
            UNROLL
            for (int i = 0; i < LANES; i++)
                if (i < count)
                    store(panel + (feature + i) * width + token, block[i]);
        }
    }
}

/* To a number of values that fills vectors. */
INLINE void add(float *values, int64_t count, float offset) {
    for (int64_t i = 0; i < count; i += LANES)
        store(values + i, load(values + i) + offset);
}

/* Where the results of a tile's rows go. */
struct target {
    const int32_t *outputs;
    int64_t rows;
    int consecutive;
};

/* sums[row][token], with the bias, to y[token][output]. */
static void put(const struct call *call, struct target target, int64_t first, int64_t width, float *sums) {
    const float *offset = call->bias;
    if (call->activation) {
        for (int64_t row = 0; offset && row < target.rows; row++)
            add(sums + row * width, width, offset[target.outputs[row]]);
        offset = NULL;
        activate(call->activation, sums, target.rows * width);
    }
    for (int64_t row = 0; row < target.rows; row += LANES) {
        const int64_t count = target.rows - row < LANES ? target.rows - row : LANES;
        const int32_t *outputs = target.outputs + row;
        vector bias = {0};
        if (offset) {
            if (target.consecutive)
                bias = count == LANES ? load(offset + *outputs) : load_some(offset + *outputs, count);
            else
                for (int i = 0; i < count; i++)
                    bias[i] = offset[outputs[i]];
        }
        for (int64_t token = 0; token < width && first + token < call->tokens; token += LANES) {
            const int64_t left = call->tokens - first - token;
            vector block[LANES];
            UNROLL
            for (int i = 0; i < LANES; i++)
                block[i] = i < count ? load(sums + (row + i) * width + token) : (vector){0};
            transpose(block);
            float *to = call->y + (first + token) * call->y_row;
            const float *times = call->times ? call->times + (first + token) * call->y_row : NULL;
            if (times) {
                for (int i = 0; i < LANES && i < left; i++) {
                    float line[LANES];
                    store(line, block[i] + bias);
                    for (int64_t j = 0; j < count; j++)
                        to[i * call->y_row + outputs[j]] = line[j] * times[i * call->y_row + outputs[j]];
                }
            } else if (target.consecutive) {
                UNROLL
                for (int i = 0; i < LANES; i++)
                    if (i < left) {
                        if (count == LANES)
                            store(to + i * call->y_row + *outputs, block[i] + bias);
                        else
                            store_some(to + i * call->y_row + *outputs, block[i] + bias, count);
                    }
            } else
                for (int i = 0; i < LANES && i < left; i++) {
                    float line[LANES];
                    store(line, block[i] + bias);
                    for (int64_t j = 0; j < count; j++)
                        to[i * call->y_row + outputs[j]] = line[j];
                }
        }
    }
}

/* sums[row][token] for `tall` rows and `deep` vectors of tokens: both constants, so that the sums are registers. */
INLINE void panel_rows(const int tall, const int deep, const float *weight, int64_t k, int64_t last,
                       const int32_t *inputs, const float *panel, float *sums) {
    const float *rows[TALL];
    vector sum[TALL][DEEP];
    UNROLL
    for (int r = 0; r < tall; r++) {
        rows[r] = weight + (r < last ? r : last) * k; /* past the last row: that one again */
        UNROLL
        for (int v = 0; v < deep; v++)
            sum[r][v] = (vector){0};
    }
    for (int64_t i = 0; i < k; i++) {
        const float *x = panel + (int64_t)inputs[i] * (deep * LANES);
        if (i % 16 == 0) { /* a cache line of the next rows */
            UNROLL
            for (int r = 0; r < tall; r++)
                __builtin_prefetch(rows[r] + tall * k + i);
        }
        vector value[DEEP];
        UNROLL
        for (int v = 0; v < deep; v++)
            value[v] = load(x + v * LANES);
        UNROLL
        for (int r = 0; r < tall; r++) {
            const float factor = rows[r][i];
            UNROLL
            for (int v = 0; v < deep; v++)
                sum[r][v] += value[v] * factor;
        }
    }
    UNROLL
    for (int r = 0; r < tall; r++)
        if (r <= last) {
            UNROLL
            for (int v = 0; v < deep; v++)
                store(sums + (r * deep + v) * LANES, sum[r][v]);
        }
}

/* As many rows as there are. */
INLINE void all_rows(const int deep, const float *weight, int64_t k, int64_t rows, const int32_t *inputs,
                     const float *panel, float *sums) {
    for (int64_t r = 0; r < rows;) {
        float *to = sums + r * deep * LANES;
        if (rows - r > 1) {
            panel_rows(TALL, deep, weight + r * k, k, rows - r - 1, inputs, panel, to);
            r += TALL;
        } else {
            panel_rows(1, deep, weight + r * k, k, 0, inputs, panel, to);
            r += 1;
        }
    }
}

INLINE void panel_tiles(const int deep, const struct call *call, int64_t first, int64_t begin, int64_t end,
                        const float *panel) {
    const struct layer *layer = call->layer;
    float sums[TILE * PANEL];
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t *block = layer->blocks + 6 * layer->tiles[2 * tile], row = layer->tiles[2 * tile + 1];
        const int64_t k = block[4], left = block[3] - row, rows = left < TILE ? left : TILE;
        const float *weight = call->weight + block[2] + row * k;
        const int32_t *inputs = layer->inputs + block[0];
        all_rows(deep, weight, k, rows, inputs, panel, sums);
        put(call, (struct target){layer->outputs + block[1] + row, rows, (block[5] & 2) != 0}, first, deep * LANES,
            sums);
    }
}

/* turned[input][row] from weight[row][input]; rows that fill the last vector are zeros. */
static void turn_weights(const float *weight, int64_t k, int64_t rows, float *turned) {
    for (int64_t row = 0; row < rows; row += LANES)
        for (int64_t i = 0; i < k; i += LANES) {
            const int64_t count = k - i < LANES ? k - i : LANES;
            vector block[LANES];
            UNROLL
            for (int r = 0; r < LANES; r++) {
                const float *from = weight + (row + r) * k + i;
                block[r] = row + r >= rows ? (vector){0} : count == LANES ? load(from) : load_some(from, count);
            }
            transpose(block);
            UNROLL
            for (int j = 0; j < LANES; j++)
                if (j < count)
                    store(turned + (i + j) * TILE + row, block[j]);
        }
}

/* `wide` vectors of rows, a constant, for ABREAST tokens, of which `left` are there. */
INLINE void narrow_rows(const int wide, const struct call *call, const float *turned, int64_t k, const int32_t *inputs,
                        int64_t token, int64_t left, int64_t output, int64_t row, int64_t rows) {
    const float *from[ABREAST];
    vector sum[ABREAST][WIDE];
    int64_t at[WIDE];
    UNROLL
    for (int v = 0; v < wide; v++) /* the last vector again has rows of the one before, rather than some that are not */
        at[v] = row + v * LANES + LANES > rows && rows >= LANES ? rows - LANES : row + v * LANES;
    UNROLL
    for (int t = 0; t < ABREAST; t++) {
        from[t] = call->x + (token + (t < left ? t : 0)) * call->x_row;
        UNROLL
        for (int v = 0; v < wide; v++)
            sum[t][v] = (vector){0};
    }
    for (int64_t i = 0; i < k; i++) {
        vector factor[WIDE];
        UNROLL
        for (int v = 0; v < wide; v++)
            factor[v] = load(turned + i * TILE + at[v]);
        const int64_t input = inputs[i];
        UNROLL
        for (int t = 0; t < ABREAST; t++) {
            const float value = from[t][input];
            UNROLL
            for (int v = 0; v < wide; v++)
                sum[t][v] += factor[v] * value;
        }
    }
    UNROLL
    for (int v = 0; v < wide; v++) {
        float *to = call->y + token * call->y_row + output + at[v];
        const float *offset = call->bias ? call->bias + output + at[v] : NULL;
        const vector bias = !offset ? (vector){0} : rows < LANES ? load_some(offset, rows) : load(offset);
        UNROLL
        for (int t = 0; t < ABREAST; t++)
            if (t < left) {
                if (rows < LANES)
                    store_some(to + t * call->y_row, sum[t][v] + bias, rows);
                else
                    store(to + t * call->y_row, sum[t][v] + bias);
            }
    }
}

static void narrow_tiles(const struct call *call, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const struct layer *layer = call->layer;
    _Alignas(64) float turned[NARROW * TILE];
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t *block = layer->blocks + 6 * layer->tiles[2 * tile], row = layer->tiles[2 * tile + 1];
        const int64_t k = block[4], rows = block[3] - row < TILE ? block[3] - row : TILE;
        const int64_t output = layer->outputs[block[1] + row];
        const int32_t *inputs = layer->inputs + block[0];
        turn_weights(call->weight + block[2] + row * k, k, rows, turned);
        for (int64_t token = first; token < last; token += ABREAST) {
            const int64_t left = last - token;
            for (int64_t r = 0; r < rows;)
                if (rows - r > 2 * LANES && WIDE > 2) {
                    narrow_rows(WIDE, call, turned, k, inputs, token, left, output, r, rows);
                    r += WIDE * LANES;
                } else if (rows - r > LANES) {
                    narrow_rows(2, call, turned, k, inputs, token, left, output, r, rows);
                    r += 2 * LANES;
                } else {
                    narrow_rows(1, call, turned, k, inputs, token, left, output, r, rows);
                    r += LANES;
                }
            for (int64_t t = 0; (call->activation || call->times) && t < ABREAST && t < left; t++) {
                const int64_t at = (token + t) * call->y_row + output;
                activate(call->activation, call->y + at, rows);
                for (int64_t r = 0; call->times && r < rows; r++)
                    call->y[at + r] *= call->times[at + r];
            }
        }
    }
}

/* Sums of the lanes of four vectors. */
INLINE four across(const vector *sum) {
    four part[4];
    UNROLL
    for (int r = 0; r < 4; r++) {
        four pieces[LANES / 4];
        memcpy(pieces, &sum[r], sizeof(vector));
#if defined(__AVX512F__) || defined(__AVX__)
        part[r] = pieces[0] + pieces[1];
#if defined(__AVX512F__)
        part[r] += pieces[2] + pieces[3];
#endif
#else
        part[r] = pieces[0];
#endif
    }
    const four ab = SHUFFLE4(part[0], part[1], 0, 4, 1, 5) + SHUFFLE4(part[0], part[1], 2, 6, 3, 7);
    const four cd = SHUFFLE4(part[2], part[3], 0, 4, 1, 5) + SHUFFLE4(part[2], part[3], 2, 6, 3, 7);
    return SHUFFLE4(ab, cd, 0, 1, 4, 5) + SHUFFLE4(ab, cd, 2, 3, 6, 7);
}

/* Four rows of weights against `tokens` tokens, a constant: each weight is read once for all of them. */
INLINE void dot_rows(const int tokens, const float *weight, int64_t k, int64_t last, const float *x, int64_t x_row,
                     float results[][ROWS]) {
    const float *rows[ROWS];
    vector sum[FEW / 2][ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        rows[r] = weight + (r < last ? r : last) * k;
    UNROLL
    for (int t = 0; t < tokens; t++)
        UNROLL
        for (int r = 0; r < ROWS; r++)
            sum[t][r] = (vector){0};
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        vector factor[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            /* The next rows: four streams that jump every few lines are more than the processor foresees. */
            __builtin_prefetch(rows[r] + ROWS * k + i);
            factor[r] = load(rows[r] + i);
        }
        UNROLL
        for (int t = 0; t < tokens; t++) {
            const vector value = load(x + t * x_row + i);
            UNROLL
            for (int r = 0; r < ROWS; r++)
                sum[t][r] += value * factor[r];
        }
    }
    if (i < k) {
        vector factor[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++)
            factor[r] = load_some(rows[r] + i, k - i);
        UNROLL
        for (int t = 0; t < tokens; t++) {
            const vector value = load_some(x + t * x_row + i, k - i);
            UNROLL
            for (int r = 0; r < ROWS; r++)
                sum[t][r] += value * factor[r];
        }
    }
    UNROLL
    for (int t = 0; t < tokens; t++) {
        const four result = across(sum[t]);
        memcpy(results[t], &result, sizeof result);
    }
}

/* lines[token][row], a block's rows against all tokens; x holds its inputs side by side. */
static void dots(const float *weight, int64_t k, int64_t rows, const float *x, int64_t x_row, int64_t tokens,
                 float *lines, int64_t line_row) {
    for (int64_t r = 0; r < rows; r += ROWS) {
        const int64_t last = rows - r - 1, count = last < ROWS ? last + 1 : ROWS;
        float results[FEW][ROWS];
        int64_t t = 0;
        for (; t + 4 <= tokens; t += 4)
            dot_rows(4, weight + r * k, k, last, x + t * x_row, x_row, results + t);
        for (; t + 2 <= tokens; t += 2)
            dot_rows(2, weight + r * k, k, last, x + t * x_row, x_row, results + t);
        if (t < tokens)
            dot_rows(1, weight + r * k, k, last, x + t * x_row, x_row, results + t);
        for (t = 0; t < tokens; t++)
            for (int64_t i = 0; i < count; i++)
                lines[t * line_row + r + i] = results[t][i];
    }
}

/* The inputs of a block side by side: where they lie, if they do, or gathered. */
static const float *beside(const float *x, int64_t *x_row, int64_t tokens, const int32_t *inputs, int64_t k,
                           int consecutive, int anew, float *gathered) {
    if (consecutive)
        return x + *inputs;
    if (anew)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t i = 0; i < k; i++)
                gathered[t * k + i] = x[t * *x_row + inputs[i]];
    *x_row = k;
    return gathered;
}

static void dot_tiles(const struct call *call, int64_t begin, int64_t end, float *gathered) {
    const struct layer *layer = call->layer;
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t number = layer->tiles[2 * tile], row = layer->tiles[2 * tile + 1];
        const int64_t *block = layer->blocks + 6 * number, k = block[4];
        const int64_t left = block[3] - row, rows = left < TILE ? left : TILE;
        const int32_t *outputs = layer->outputs + block[1] + row;
        int64_t x_row = call->x_row;
        const int anew = tile == begin || layer->tiles[2 * tile - 2] != number;
        const float *x = beside(call->x, &x_row, call->tokens, layer->inputs + block[0], k, block[5] & 1, anew, gathered);
        float lines[FEW * TILE];
        dots(call->weight + block[2] + row * k, k, rows, x, x_row, call->tokens, lines, TILE);
        for (int64_t t = 0; t < call->tokens; t++) {
            float *line = lines + t * TILE, *y = call->y + t * call->y_row;
            const float *times = call->times ? call->times + t * call->y_row : NULL;
            for (int64_t i = 0; call->bias && i < rows; i++)
                line[i] += call->bias[outputs[i]];
            activate(call->activation, line, rows);
            for (int64_t i = 0; i < rows; i++)
                y[outputs[i]] = times ? line[i] * times[outputs[i]] : line[i];
        }
    }
}

/* The first tile of a part: parts hold like amounts of work. */
static int64_t part_begin(const struct layer *layer, int64_t part, int64_t parts) {
    const double wanted = (double)layer->work[layer->tiles_count] * (double)part / (double)parts;
    int64_t low = 0, high = layer->tiles_count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if ((double)layer->work[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void put_dead(const struct call *call, int64_t first, int64_t end) {
    for (int64_t token = first; token < end; token++)
        for (int64_t i = 0; i < call->layer->dead_count; i++) {
            const int32_t output = call->layer->dead[i];
            const int64_t at = token * call->y_row + output;
            float value = call->bias ? call->bias[output] : 0.0f;
            activate(call->activation, &value, 1);
            call->y[at] = call->times ? value * call->times[at] : value;
        }
}

/* Room for so many floats, at the beginning of a cache line of `memory`, which is to be freed. */
static float *room(size_t floats, void **memory) {
    *memory = malloc((floats + 16) * sizeof(float));
    return *memory ? (float *)(((uintptr_t)*memory + 63) / 64 * 64) : NULL;
}

/* What each thread runs, alone or in a team: it claims a panel and a part of the tiles until none is left. */
void gradtrace_routed_linear(void *given) {
    struct call *call = given;
    const struct layer *layer = call->layer;
    const int few = call->tokens <= FEW, narrow = !few && layer->narrow;
    const int64_t width = narrow ? STRETCH : PANEL, panels = few ? 1 : (call->tokens + width - 1) / width;
    const size_t floats = narrow ? 1 : few ? (size_t)layer->longest * call->tokens : (size_t)layer->in_features * PANEL;
    void *memory = NULL;
    float *scratch = NULL;
    int64_t turned = -1;
    for (;;) {
        const int64_t slot = __atomic_fetch_add(&call->claimed, 1, __ATOMIC_RELAXED);
        if (slot >= panels * call->parts)
            break;
        if (!memory && !(scratch = room(floats, &memory))) {
            __atomic_store_n(&call->failed, 1, __ATOMIC_RELAXED);
            return;
        }
        const int64_t panel = slot / call->parts, part = slot % call->parts;
        const int64_t begin = part_begin(layer, part, call->parts), end = part_begin(layer, part + 1, call->parts);
        const int64_t first = panel * width, left = call->tokens - first;
        const int64_t last = few || left < width ? call->tokens : first + width;
        if (part == 0)
            put_dead(call, first, last);
        if (few)
            dot_tiles(call, begin, end, scratch);
        else if (narrow)
            narrow_tiles(call, first, last, begin, end);
        else {
            const int shallow = left <= LANES;
            if (turned != panel)
                turn(call, first, shallow ? LANES : PANEL, scratch);
            turned = panel;
            if (shallow)
                panel_tiles(1, call, first, begin, end, scratch);
            else
                panel_tiles(DEEP, call, first, begin, end, scratch);
        }
    }
    free(memory);
}

/* All blocks of an MLP: what is hidden lies in the order of the blocks, and is private to each. */
struct mlp {
    const struct layer *up, *down; /* the same blocks in both; no output lies in two */
    const float *x, *up_weight, *gate_weight, *down_weight; /* gate_weight may be NULL, so may the biases */
    const float *up_bias, *gate_bias, *down_bias;
    float *y;
    const int64_t *work; /* (S + 1,) multiplications of the blocks before */
    int64_t blocks, tokens, x_row, y_row, parts, claimed;
    int32_t activation, failed;
};

/* hidden[unit][token] of one block, or of its gate. */
INLINE void hidden_rows(const int deep, const struct layer *up, const int64_t *block, const float *weight,
                        const float *bias, const float *panel, float *hidden) {
    all_rows(deep, weight + block[2], block[4], block[3], up->inputs + block[0], panel, hidden);
    for (int64_t row = 0; bias && row < block[3]; row++)
        add(hidden + row * deep * LANES, deep * LANES, bias[block[1] + row]);
}

static void multiply(float *values, const float *times, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        values[i] *= times[i];
}

INLINE void mlp_panel(const int deep, const struct mlp *mlp, const struct call *call, int64_t first, int64_t begin,
                      int64_t end, const float *panel, float *hidden) {
    float sums[TILE * PANEL], *gate = hidden + mlp->up->longest_n * PANEL;
    for (int64_t number = begin; number < end; number++) {
        const int64_t *up = mlp->up->blocks + 6 * number, *down = mlp->down->blocks + 6 * number, m = up[3];
        hidden_rows(deep, mlp->up, up, mlp->up_weight, mlp->up_bias, panel, hidden);
        if (mlp->gate_weight)
            hidden_rows(deep, mlp->up, up, mlp->gate_weight, mlp->gate_bias, panel, gate);
        activate(mlp->activation, mlp->gate_weight ? gate : hidden, m * deep * LANES);
        if (mlp->gate_weight)
            multiply(hidden, gate, m * deep * LANES);
        for (int64_t row = 0; row < down[3]; row += TILE) {
            const int64_t rows = down[3] - row < TILE ? down[3] - row : TILE;
            /* The inputs of the first block are 0, 1, ..: what is hidden lies from 0 on for every block. */
            all_rows(deep, mlp->down_weight + down[2] + row * m, m, rows, mlp->down->inputs, hidden, sums);
            put(call, (struct target){mlp->down->outputs + down[1] + row, rows, (down[5] & 2) != 0}, first,
                deep * LANES, sums);
        }
    }
}

static void mlp_few(const struct mlp *mlp, int64_t begin, int64_t end, float *gathered, float *hidden) {
    const int64_t tokens = mlp->tokens;
    float *gate = hidden + mlp->up->longest_n * FEW;
    for (int64_t number = begin; number < end; number++) {
        const int64_t *up = mlp->up->blocks + 6 * number, *down = mlp->down->blocks + 6 * number;
        const int64_t k = up[4], m = up[3];
        int64_t x_row = mlp->x_row;
        const float *x = beside(mlp->x, &x_row, tokens, mlp->up->inputs + up[0], k, up[5] & 1, 1, gathered);
        for (int gated = 0; gated < (mlp->gate_weight ? 2 : 1); gated++) {
            const float *bias = gated ? mlp->gate_bias : mlp->up_bias;
            float *to = gated ? gate : hidden;
            dots((gated ? mlp->gate_weight : mlp->up_weight) + up[2], k, m, x, x_row, tokens, to, m);
            for (int64_t t = 0; bias && t < tokens; t++)
                for (int64_t i = 0; i < m; i++)
                    to[t * m + i] += bias[up[1] + i];
        }
        activate(mlp->activation, mlp->gate_weight ? gate : hidden, m * tokens);
        if (mlp->gate_weight)
            multiply(hidden, gate, m * tokens);
        for (int64_t row = 0; row < down[3]; row += TILE) {
            const int64_t rows = down[3] - row < TILE ? down[3] - row : TILE;
            const int32_t *outputs = mlp->down->outputs + down[1] + row;
            float lines[FEW * TILE];
            dots(mlp->down_weight + down[2] + row * m, m, rows, hidden, m, tokens, lines, TILE);
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t i = 0; i < rows; i++)
                    mlp->y[t * mlp->y_row + outputs[i]] =
                        lines[t * TILE + i] + (mlp->down_bias ? mlp->down_bias[outputs[i]] : 0.0f);
        }
    }
}

/* The first block of a part: parts hold like amounts of work. */
static int64_t mlp_begin(const struct mlp *mlp, int64_t part) {
    const double wanted = (double)mlp->work[mlp->blocks] * (double)part / (double)mlp->parts;
    int64_t block = 0;
    while (block < mlp->blocks && (double)mlp->work[block] < wanted)
        block++;
    return block;
}

/* What each thread runs, alone or in a team. */
void gradtrace_routed_mlp(void *given) {
    struct mlp *mlp = given;
    const int few = mlp->tokens <= FEW;
    const int64_t panels = few ? 1 : (mlp->tokens + PANEL - 1) / PANEL, width = few ? FEW : PANEL;
    const int64_t features = few ? mlp->up->longest : mlp->up->in_features;
    const struct call call = {.layer = mlp->down, .x = mlp->x, .bias = mlp->down_bias, .y = mlp->y,
                              .tokens = mlp->tokens, .x_row = mlp->x_row, .y_row = mlp->y_row};
    /* Turned by the features of the input, which the layer above knows. */
    const struct call above = {.layer = mlp->up, .x = mlp->x, .tokens = mlp->tokens, .x_row = mlp->x_row};
    void *memory = NULL;
    float *scratch = NULL;
    int64_t turned = -1;
    for (;;) {
        const int64_t slot = __atomic_fetch_add(&mlp->claimed, 1, __ATOMIC_RELAXED);
        if (slot >= panels * mlp->parts)
            break;
        if (!memory && !(scratch = room((size_t)(features + 2 * mlp->up->longest_n) * width, &memory))) {
            __atomic_store_n(&mlp->failed, 1, __ATOMIC_RELAXED);
            return;
        }
        float *hidden = scratch + features * width;
        const int64_t panel = slot / mlp->parts, part = slot % mlp->parts;
        const int64_t begin = mlp_begin(mlp, part), end = mlp_begin(mlp, part + 1);
        const int64_t first = panel * PANEL, left = mlp->tokens - first;
        if (part == 0)
            put_dead(&call, first, few || left < PANEL ? mlp->tokens : first + PANEL);
        if (few)
            mlp_few(mlp, begin, end, scratch, hidden);
        else {
            const int shallow = left <= LANES;
            if (turned != panel)
                turn(&above, first, shallow ? LANES : PANEL, scratch);
            turned = panel;
            if (shallow)
                mlp_panel(1, mlp, &call, first, begin, end, scratch, hidden);
            else
                mlp_panel(DEEP, mlp, &call, first, begin, end, scratch, hidden);
        }
    }
    free(memory);
}
