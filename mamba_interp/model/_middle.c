/* What stands around the scan in a block of Mamba, included by `_scan.c` once for float and once for double:
   numbers of 16 bits, the functions silu and softplus, and the causal convolution with its silu, forward and backward. */

/* LANES numbers from index i on, REAL, or bfloat16 (the upper half of a float) if `half`; put rounds to nearest, ties to even */
#ifdef DOUBLE
INLINE V NAME(get)(const void *p, int64_t i, int half, int64_t m) { return NAME(load)((const REAL *)p + i, m); }
INLINE void NAME(put)(void *p, int64_t i, int half, V v, int64_t m) { NAME(store)((REAL *)p + i, v, m); }
#else
typedef uint32_t bits __attribute__((vector_size(WIDTH)));
typedef uint16_t short_bits __attribute__((vector_size(WIDTH / 2)));
typedef uint16_t loose_bits __attribute__((vector_size(WIDTH / 2), aligned(2), may_alias));
INLINE V NAME(get)(const void *p, int64_t i, int half, int64_t m) {
    if (!half) return NAME(load)((const REAL *)p + i, m);
    short_bits s = {0};
    if (m >= LANES) s = *(const loose_bits *)((const uint16_t *)p + i); else memcpy(&s, (const uint16_t *)p + i, m * 2);
    return (V)(__builtin_convertvector(s, bits) << 16);
}
INLINE void NAME(put)(void *p, int64_t i, int half, V v, int64_t m) {
    if (!half) { NAME(store)((REAL *)p + i, v, m); return; }
    bits b = (bits)v, nan = (bits)(v != v);
    b = (((b + 0x7fff + ((b >> 16) & 1)) & ~nan) | (0x7fc00000 & nan)) >> 16;
    short_bits s = __builtin_convertvector(b, short_bits);
    if (m >= LANES) *(loose_bits *)((uint16_t *)p + i) = s; else memcpy((uint16_t *)p + i, &s, m * 2);
}
#endif

/* e^x for any x; unlike `power` it takes the logarithm of 2 in two parts, so that its error does not grow with x */
INLINE V NAME(exp)(V x) {
#ifdef DOUBLE
    return NAME(power)(x);
#else
    const REAL MAGIC = 12582912.f;
    x = NAME(clamp)(x, -87.f, 88.f);
    V t = x * 1.44269504088896341f + MAGIC, r = t - MAGIC;
    V f = x - r * 0.693359375f; f = f + r * 2.12194440e-4f; f = f * 1.44269504088896341f;
    V p = 1.326465909e-3f * f + 9.671565952e-3f;
    p = p * f + 5.550734388e-2f; p = p * f + 2.402224127e-1f; p = p * f + 6.931469770e-1f; p = p * f + 1.f;
    return (V)((I)p + ((I)t << 23));
#endif
}

INLINE V NAME(sigmoid)(V x) { return 1 / (1 + NAME(exp)(-x)); }

/* slope of silu, where s is the sigmoid of x */
INLINE V NAME(silu_slope)(V x, V s) { return s * (1 + x * (1 - s)); }

/* log(1 + e^x) = max(x, 0) + 2 artanh(e / (2 + e)) with e = e^-|x|, by artanh's series; x itself above 20, as in PyTorch */
INLINE V NAME(softplus)(V x) {
    I up = x > 0, far = x > 20;
    V high = (V)((I)x & up), e = NAME(exp)(x - 2 * high), s = e / (2 + e), q = s * s, p;
#ifdef DOUBLE
    p = q / 35 + (REAL)1 / 33;
    for (int i = 31; i > 0; i -= 2) p = p * q + (REAL)1 / i;
#else
    p = q / 15 + (REAL)1 / 13;
    for (int i = 11; i > 0; i -= 2) p = p * q + (REAL)1 / i;
#endif
    p = high + 2 * s * p;
    return (V)(((I)x & far) | ((I)p & ~far));
}

INLINE V NAME(softplus_slope)(V x) {
    I far = x > 20;
    V one = 1 - (V){0};
    return (V)(((I)one & far) | ((I)NAME(sigmoid)(x) & ~far));
}

#define ROWS 32    /* tokens that a thread convolves at once */
#define GROUP 256  /* channels, likewise */
#define LAGS 64    /* the largest kernel */

/* the input of channels e0 to e1 at token t: a row of x, before the first token one of the tail, or zeros */
static void NAME(row)(V *to, int64_t t, int64_t K, const char *x, int64_t step, const char *tail, int half, int64_t E, int64_t e0, int64_t e1) {
    const char *from = t >= 0 ? x + t * step : tail ? tail + (K - 1 + t) * E * (half ? 2 : sizeof(REAL)) : 0;
    for (int64_t e = e0; e < e1; e += LANES) *to++ = from ? NAME(get)(from, e, half, MIN(LANES, e1 - e)) : (V){0};
}

/* the weights of channels e0 to e1: w is (k+1 e), lag 0 first and the bias last */
static void NAME(conv_weights)(V *to, const REAL *w, int64_t K, int64_t E, int64_t e0, int64_t e1) {
    for (int64_t j = 0; j <= K; j++) for (int64_t e = e0; e < e1; e += LANES) *to++ = NAME(load)(w + j * E + e, MIN(LANES, e1 - e));
}

INLINE V NAME(conv_at)(const int64_t K, const V *w, const V *const *at, int64_t nv, int64_t v) {
    V c = w[K * nv + v];
    for (int64_t j = 0; j < K; j++) c += w[j * nv + v] * at[j][v];
    return c;
}

INLINE void NAME(conv_ahead)(const int64_t K, const V *w, const V *const *at, V *out, int64_t nv) {
    for (int64_t v = 0; v < nv; v++) { V c = NAME(conv_at)(K, w, at, nv, v); out[v] = c * NAME(sigmoid)(c); }
}

/* at one token: g is the gradient of silu's output and becomes that of the input; `later` holds the gradients of the
   convolution at this token, which is set here, and at the K-1 after it; `sum` (k+1, channels) what w gets */
INLINE void NAME(conv_back)(const int64_t K, const V *w, const V *const *at, V *const *later, V *sum, V *g, int64_t nv) {
    for (int64_t v = 0; v < nv; v++) {
        V c = NAME(conv_at)(K, w, at, nv, v), gc = g[v] * NAME(silu_slope)(c, NAME(sigmoid)(c)), gx = gc * w[v];
        later[0][v] = gc;
        sum[K * nv + v] += gc;
        for (int64_t j = 0; j < K; j++) sum[j * nv + v] += gc * at[j][v];
        for (int64_t j = 1; j < K; j++) gx += w[j * nv + v] * later[j][v];
        g[v] = gx;
    }
}

/* p: x w tail | u;  k: b t e k threads, the (b, t) strides of x, whether x and u are bfloat16.
   tail (b k-1 e), as x, may be null. */
int NAME(conv_forward)(void **p, const int64_t *k) {
    const int64_t nb = k[0], T = k[1], E = k[2], K = k[3], nt = k[4], blocks = (T + ROWS - 1) / ROWS, groups = (E + GROUP - 1) / GROUP;
    const int xh = k[7], uh = k[8];
    const int64_t size = xh ? 2 : sizeof(REAL), most = GROUP / LANES;
    int failed = 0;
#pragma omp parallel num_threads(nt) reduction(|:failed)
    {
        FLUSH;
        V *w = workspace((2 * K + 2) * most * sizeof(V)), *ring = w + (K + 1) * most, *out = ring + K * most;
        const V *at[LAGS];
        failed = !w;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < nb * blocks * groups; item++) {
            if (!w) continue;
            int64_t b = item / groups / blocks, t0 = item / groups % blocks * ROWS, e0 = item % groups * GROUP, e1 = MIN(E, e0 + GROUP);
            int64_t nv = (e1 - e0 + LANES - 1) / LANES;
            const char *x = (const char *)p[0] + b * k[5] * size, *tail = p[2] ? (const char *)p[2] + b * (K - 1) * E * size : 0;
            NAME(conv_weights)(w, p[1], K, E, e0, e1);
            for (int64_t t = t0 - K + 1; t < MIN(T, t0 + ROWS); t++) {
                NAME(row)(ring + (t + K) % K * nv, t, K, x, k[6] * size, tail, xh, E, e0, e1);
                if (t < t0) continue;
                for (int64_t j = 0; j < K; j++) at[j] = ring + (t - j + K) % K * nv;
                if (K == 4) NAME(conv_ahead)(4, w, at, out, nv); else NAME(conv_ahead)(K, w, at, out, nv);
                for (int64_t v = 0; v < nv; v++) {
                    int64_t e = e0 + v * LANES;
                    NAME(put)(p[3], (b * T + t) * E + e, uh, out[v], MIN(LANES, e1 - e));
                }
            }
        }
        free(w);
        RESTORE;
    }
    return failed;
}

/* p: x w tail gu | gx gw gtail;  k: as above, then rows in a chunk. gw is (chunks k+1 e); the sums end in the first chunk.
   gtail may be null. */
int NAME(conv_backward)(void **p, const int64_t *k) {
    REAL *gw = p[5];
    const int64_t nb = k[0], T = k[1], E = k[2], K = k[3], nt = k[4], chunk = k[9], chunks = (nb + chunk - 1) / chunk, groups = (E + GROUP - 1) / GROUP;
    const int xh = k[7], uh = k[8];
    const int64_t size = xh ? 2 : sizeof(REAL), most = GROUP / LANES, sums = (K + 1) * E;
    int failed = 0;
#pragma omp parallel num_threads(nt) reduction(|:failed)
    {
        FLUSH;
        V *w = workspace((4 * K + 3) * most * sizeof(V)), *sum = w + (K + 1) * most, *ring = sum + (K + 1) * most;
        V *past = ring + K * most, *g = past + K * most, *later[LAGS];
        const V *at[LAGS];
        failed = !w;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < chunks * groups; item++) {
            if (!w) continue;
            int64_t c = item / groups, e0 = item % groups * GROUP, e1 = MIN(E, e0 + GROUP), nv = (e1 - e0 + LANES - 1) / LANES;
            NAME(conv_weights)(w, p[1], K, E, e0, e1);
            memset(sum, 0, (K + 1) * nv * sizeof(V));
            for (int64_t b = c * chunk; b < MIN(nb, (c + 1) * chunk); b++) {
                const char *x = (const char *)p[0] + b * k[5] * size, *tail = p[2] ? (const char *)p[2] + b * (K - 1) * E * size : 0;
                memset(past, 0, K * nv * sizeof(V));
                for (int64_t j = 0; j < K - 1; j++) NAME(row)(ring + (T - 1 - j + K) % K * nv, T - 1 - j, K, x, k[6] * size, tail, xh, E, e0, e1);
                for (int64_t t = T - 1; t >= (p[6] ? 1 - K : 0); t--) {
                    for (int64_t j = 0; j < K; j++) later[j] = past + (t + j + K) % K * nv;
                    if (t >= 0) {
                        NAME(row)(ring + (t + 1) % K * nv, t - K + 1, K, x, k[6] * size, tail, xh, E, e0, e1);
                        for (int64_t j = 0; j < K; j++) at[j] = ring + (t - j + K) % K * nv;
                        for (int64_t v = 0; v < nv; v++) {
                            int64_t e = e0 + v * LANES;
                            g[v] = NAME(get)(p[3], (b * T + t) * E + e, uh, MIN(LANES, e1 - e));
                        }
                        if (K == 4) NAME(conv_back)(4, w, at, later, sum, g, nv); else NAME(conv_back)(K, w, at, later, sum, g, nv);
                    } else for (int64_t v = 0; v < nv; v++) {
                        g[v] = later[0][v] = (V){0};
                        for (int64_t j = 1; j < K; j++) g[v] += w[j * nv + v] * later[j][v];
                    }
                    for (int64_t v = 0; v < nv; v++) {
                        int64_t e = e0 + v * LANES, m = MIN(LANES, e1 - e);
                        if (t >= 0) NAME(put)(p[4], (b * T + t) * E + e, xh, g[v], m);
                        else NAME(put)(p[6], (b * (K - 1) + K - 1 + t) * E + e, xh, g[v], m);
                    }
                }
            }
            for (int64_t j = 0; j <= K; j++) for (int64_t v = 0; v < nv; v++) {
                int64_t e = e0 + v * LANES;
                NAME(store)(gw + c * sums + j * E + e, sum[j * nv + v], MIN(LANES, e1 - e));
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < sums; i++) for (int64_t c = 1; c < chunks; c++) gw[i] += gw[c * sums + i];
        free(w);
        RESTORE;
    }
    return failed;
}
#undef ROWS
#undef GROUP
#undef LAGS
