/* The selective scan on a CPU, forward, backward, and backward between two runs, built on first use by `mamba_interp.scan`; with what
   stands around it in a block, `_middle.c`.

   h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t,   y_t = sum_n C_t h_t

   One vector holds LANES neighbouring channels of one state index, so y, dt and u need no sum across lanes.
   Time is cut into segments of at most `seg` tokens; the forward keeps the state at the start of each segment, the
   backward computes a segment's states again, TILE state indices at a time, in a workspace that fits the cache.
   Work is split over (row, channels) alone, and partial sums are added in a fixed order: the result does not depend on
   the number of threads. States smaller than the smallest normal number are flushed to zero, inside these functions only.
   The file includes itself, once for float and once for double. */
#ifndef REAL
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined __SSE2__
#include <immintrin.h>
#endif

#if defined __AVX512F__
#define WIDTH 64
#elif defined __AVX__
#define WIDTH 32
#else
#define WIDTH 16
#endif
#define TILE 8
#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, REAL)
#define V NAME(vec)
#define I NAME(ivec)
#define MIN(a, b) ((a) < (b) ? (a) : (b))

#if defined __SSE2__
#define FLUSH unsigned csr_ = _mm_getcsr(); _mm_setcsr(csr_ | 0x8040)
#define RESTORE _mm_setcsr(csr_)
#else
#define FLUSH
#define RESTORE
#endif

/* What a processor has to have to run this, by the names of Linux: one that lacks an instruction ends the process. */
const char *scan_needs(void) {
    return ""
#ifdef __AVX__
        "avx "
#endif
#ifdef __AVX2__
        "avx2 "
#endif
#ifdef __FMA__
        "fma "
#endif
#ifdef __AVX512F__
        "avx512f "
#endif
#ifdef __AVX512DQ__
        "avx512dq "
#endif
#ifdef __AVX512BW__
        "avx512bw "
#endif
#ifdef __AVX512VL__
        "avx512vl "
#endif
        ;
}

static void *workspace(size_t bytes) { void *p = 0; return posix_memalign(&p, 64, bytes + 64) ? 0 : p; }

#define REAL float
#define INT int32_t
#include __FILE__
#undef REAL
#undef INT
#define REAL double
#define INT int64_t
#define DOUBLE
#include __FILE__

#else /* ------------------------------------------------------------------------------------ once for each type */
typedef REAL V __attribute__((vector_size(WIDTH)));
typedef REAL NAME(loose) __attribute__((vector_size(WIDTH), aligned(sizeof(REAL)), may_alias));
typedef INT I __attribute__((vector_size(WIDTH)));
#define LANES ((int64_t)(WIDTH / sizeof(REAL)))

INLINE V NAME(load)(const REAL *p, int64_t m) {            /* the first m lanes, zeros after */
    if (m >= LANES) return *(const NAME(loose) *)p;
    V v = {0}; memcpy(&v, p, m * sizeof(REAL)); return v; }
INLINE void NAME(store)(REAL *p, V v, int64_t m) {
    if (m >= LANES) *(NAME(loose) *)p = v; else memcpy(p, &v, m * sizeof(REAL)); }
INLINE REAL NAME(total)(V v) {
#if defined __AVX512F__ && defined DOUBLE
    return _mm512_reduce_add_pd((__m512d)v);
#elif defined __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    REAL s = 0; for (int i = 0; i < LANES; i++) s += v[i]; return s;
#endif
}

INLINE V NAME(clamp)(V x, REAL lo, REAL hi) {              /* not-a-number stays what it is */
    V l = lo - (V){0}, h = hi - (V){0};
#if defined __AVX512F__ && defined DOUBLE
    return (V)_mm512_min_pd((__m512d)h, _mm512_max_pd((__m512d)l, (__m512d)x));
#elif defined __AVX512F__
    return (V)_mm512_min_ps((__m512)h, _mm512_max_ps((__m512)l, (__m512)x));
#else
    I under = x < l, over = x > h;
    return (V)(((I)x & ~under & ~over) | ((I)l & under) | ((I)h & over));
#endif
}

/* exp(x UNIT), for float in powers of 2 (A is multiplied by log2 e beforehand), for double in powers of e.
   Adding MAGIC rounds to an integer, which then stands in the low bits and is shifted into the exponent. */
#ifdef DOUBLE
#define SCALE 1.0
#define UNSCALE 1.0
INLINE V NAME(power)(V x) {
    const REAL MAGIC = 6755399441055744.0;                 /* 1.5 * 2^52 */
    x = NAME(clamp)(x, -708.0, 709.0);
    V t = x * 1.4426950408889634074 + MAGIC, r = t - MAGIC;
    V f = x - r * 0.693147180369123816490; f = f - r * 1.90821492927058770002e-10;
    V p = 1.0 / 6227020800.0 * f + 1.0 / 479001600.0;
    p = p * f + 1.0 / 39916800.0; p = p * f + 1.0 / 3628800.0; p = p * f + 1.0 / 362880.0; p = p * f + 1.0 / 40320.0;
    p = p * f + 1.0 / 5040.0; p = p * f + 1.0 / 720.0; p = p * f + 1.0 / 120.0; p = p * f + 1.0 / 24.0;
    p = p * f + 1.0 / 6.0; p = p * f + 0.5; p = p * f + 1.0; p = p * f + 1.0;
    return (V)((I)p + ((I)t << 52)); }
#else
#define SCALE 1.44269504088896341f
#define UNSCALE 0.693147180559945309f
INLINE V NAME(power)(V x) {
    const REAL MAGIC = 12582912.f;                         /* 1.5 * 2^23 */
    x = NAME(clamp)(x, -126.f, 127.5f);
    V t = x + MAGIC, f = x - (t - MAGIC);
    V p = 1.326465909e-3f * f + 9.671565952e-3f;           /* minimax for 2^f on [-1/2, 1/2]: relative error 9.2e-8 */
    p = p * f + 5.550734388e-2f; p = p * f + 2.402224127e-1f; p = p * f + 6.931469770e-1f; p = p * f + 1.f;
    return (V)((I)p + ((I)t << 23)); }
#endif

#include "_middle.c"

/* K states of LANES channels over `len` tokens: adds to y, moves h; keeps each step's decay and earlier state if asked */
INLINE void NAME(ahead)(const int K, const int keep, int64_t len, const V *dt, const V *x, const V *a, V *h, V *y,
                        const REAL *B, int64_t Bt, const REAL *C, int64_t Ct, V *before, V *decay) {
    V A[TILE], H[TILE];
    for (int k = 0; k < K; k++) { A[k] = a[k]; H[k] = h[k]; }
    for (int64_t t = 0; t < len; t++) {
        V d = dt[t], xt = x[t], out = y ? y[t] : (V){0};
#pragma GCC unroll 8
        for (int k = 0; k < K; k++) {
            V w = NAME(power)(d * A[k]);
            if (keep) { before[t * K + k] = H[k]; decay[t * K + k] = w; }
            H[k] = w * H[k] + xt * B[t * Bt + k];
            if (!keep) out += H[k] * C[t * Ct + k];
        }
        if (!keep) y[t] = out;
    }
    for (int k = 0; k < K; k++) h[k] = H[k];
}

/* the same K states backwards in time: gh is the gradient of the state after the last token, then of the one before the first */
INLINE void NAME(back)(const int K, int64_t len, const V *dt, const V *x, const V *g, const V *a, const V *h, V *gh, V *ga,
                       V *gdt, V *gx, V *gB, V *gC, const REAL *B, int64_t Bt, const REAL *C, int64_t Ct,
                       const V *before, const V *decay) {
    V A[TILE], H[TILE], G[TILE], GA[TILE];
    for (int k = 0; k < K; k++) { A[k] = a[k]; H[k] = h[k]; G[k] = gh[k]; GA[k] = (V){0}; }
    for (int64_t t = len - 1; t >= 0; t--) {
        V d = dt[t], xt = x[t], gy = g[t], sd = gdt[t], sx = gx[t];
#pragma GCC unroll 8
        for (int k = 0; k < K; k++) {
            V prev = before[t * K + k], q = G[k] + gy * C[t * Ct + k];
            gC[t * K + k] += gy * H[k];
            gB[t * K + k] += q * xt;
            sx += q * B[t * Bt + k];
            G[k] = q * decay[t * K + k];
            V e = G[k] * prev;
            sd += e * A[k]; GA[k] += e * d; H[k] = prev;
        }
        gdt[t] = sd; gx[t] = sx;
    }
    for (int k = 0; k < K; k++) { gh[k] = G[k]; ga[k] = GA[k]; }
}

/* p: u dt A B C h0 y hT starts | z D skip gated;  k: b t e n seg threads, then the (b, t) strides of u dt B C.
   A is (n e), h0 and hT (b n e), starts (b segments-1 n e); h0 and starts may be null.
   With z, dt is what softplus turns into the step size, gated = (y + D skip) silu(z), and y may be null; k goes on with two
   unused numbers, the (b, t) strides of z and skip, and whether u and skip, dt, z, and gated are bfloat16. */
int NAME(scan_forward)(void **p, const int64_t *k) {
    const void *u = p[0], *dt = p[1];
    const REAL *A = p[2], *B = p[3], *C = p[4], *h0 = p[5];
    REAL *y = p[6], *hT = p[7], *starts = p[8];
    const void *z = p[9], *skip = p[11];
    const REAL *D = p[10];
    const int64_t nb = k[0], T = k[1], E = k[2], N = k[3], S = k[4], nt = k[5], vecs = (E + LANES - 1) / LANES;
    const int64_t segs = (T + S - 1) / S;
    const int uh = z && k[20], dh = z && k[21], zh = z && k[22], gh = z && k[23];
    int failed = 0;
#pragma omp parallel num_threads(nt) reduction(|:failed)
    {
        FLUSH;
        V *ws = workspace((3 * S + 2 * N) * sizeof(V)), *d = ws, *x = d + S, *out = x + S, *a = out + S, *h = a + N;
        failed = !ws;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < nb * vecs; item++) {
            if (!ws) continue;
            int64_t b = item / vecs, e = item % vecs * LANES, m = MIN(LANES, E - e);
            for (int64_t n = 0; n < N; n++) {
                a[n] = NAME(load)(A + n * E + e, m) * SCALE;
                h[n] = h0 ? NAME(load)(h0 + (b * N + n) * E + e, m) : (V){0};
            }
            for (int64_t s = 0; s < segs; s++) {
                int64_t t0 = s * S, len = MIN(S, T - t0), n = 0;
                if (s && starts) for (n = 0; n < N; n++) NAME(store)(starts + ((b * (segs - 1) + s - 1) * N + n) * E + e, h[n], m);
                for (int64_t t = 0; t < len; t++) {
                    d[t] = NAME(get)(dt, b * k[8] + (t0 + t) * k[9] + e, dh, m);
                    if (z) d[t] = NAME(softplus)(d[t]);
                    x[t] = d[t] * NAME(get)(u, b * k[6] + (t0 + t) * k[7] + e, uh, m);
                    out[t] = (V){0};
                }
                const REAL *Bs = B + b * k[10] + t0 * k[11], *Cs = C + b * k[12] + t0 * k[13];
                for (n = 0; n + TILE <= N; n += TILE)
                    NAME(ahead)(TILE, 0, len, d, x, a + n, h + n, out, Bs + n, k[11], Cs + n, k[13], 0, 0);
                for (; n < N; n++) NAME(ahead)(1, 0, len, d, x, a + n, h + n, out, Bs + n, k[11], Cs + n, k[13], 0, 0);
                for (int64_t t = 0; t < len; t++) {
                    int64_t o = (b * T + t0 + t) * E + e;
                    if (y) NAME(store)(y + o, out[t], m);
                    if (!z) continue;
                    V g = NAME(get)(z, b * k[16] + (t0 + t) * k[17] + e, zh, m);
                    V w = out[t] + NAME(load)(D + e, m) * NAME(get)(skip, b * k[18] + (t0 + t) * k[19] + e, uh, m);
                    NAME(put)(p[12], o, gh, w * (g * NAME(sigmoid)(g)), m);
                }
            }
            for (int64_t n = 0; n < N; n++) NAME(store)(hT + (b * N + n) * E + e, h[n], m);
        }
        free(ws);
        RESTORE;
    }
    return failed;
}

/* one tile of the backward: states once more, then gradients; h and gh are those of one vector of channels */
INLINE void NAME(tile)(const int K, int64_t len, const V *d, const V *x, const V *g, const V *a, V *gh, V *gd, V *gx,
                       V *gB, V *gC, const REAL *B, int64_t Bt, const REAL *C, int64_t Ct, V *before, V *decay,
                       const REAL *from, REAL *gA, int64_t E, int64_t m) {
    V h[TILE], ga[TILE];
    for (int k = 0; k < K; k++) h[k] = from ? NAME(load)(from + k * E, m) : (V){0};
    NAME(ahead)(K, 1, len, d, x, a, h, 0, B, Bt, C, Ct, before, decay);
    NAME(back)(K, len, d, x, g, a, h, gh, ga, gd, gx, gB, gC, B, Bt, C, Ct, before, decay);
    for (int k = 0; k < K; k++) NAME(store)(gA + k * E, NAME(load)(gA + k * E, m) + ga[k], m);
}

/* p: u dt A B C h0 starts gy ghT | gu gdt gA gB gC gh0;  k: as above, then channels in a group (a multiple of 16) and rows in a chunk.
   gA is (chunks n e), zeros at first; gB and gC (groups b t n); the sums end in the first chunk and the first group.
   With z after these, gy is the gradient of gated, and p goes on: z D skip y | gz gD gskip, where gD is (chunks e);
   without gskip, skip is u, and its gradient is added to u's. */
int NAME(scan_backward)(void **p, const int64_t *k) {
    const void *u = p[0], *dt = p[1], *gy = p[7], *z = p[15], *skip = p[17];
    const REAL *A = p[2], *B = p[3], *C = p[4], *h0 = p[5], *starts = p[6], *ghT = p[8], *D = p[16], *y = p[18];
    REAL *gA = p[11], *gB = p[12], *gC = p[13], *gh0 = p[14], *gD = p[20];
    const int uh = z && k[20], dh = z && k[21], zh = z && k[22], yh = z && k[23];
    const int64_t nb = k[0], T = k[1], E = k[2], N = k[3], S = k[4], nt = k[5], group = k[14] / LANES, chunk = k[15];
    const int64_t vecs = (E + LANES - 1) / LANES, segs = (T + S - 1) / S;
    const int64_t groups = (vecs + group - 1) / group, chunks = (nb + chunk - 1) / chunk;
    int failed = 0;
#pragma omp parallel num_threads(nt) reduction(|:failed)
    {
        FLUSH;
        const int64_t GS = group * S, GN = group * N, SK = S * TILE;
        V *ws = workspace((6 * GS + 2 * GN + 4 * SK + group) * sizeof(V));
        V *d = ws, *uu = d + GS, *x = uu + GS, *g = x + GS, *sd = g + GS, *sx = sd + GS, *a = sx + GS, *gh = a + GN;
        V *qB = gh + GN, *qC = qB + SK, *before = qC + SK, *decay = before + SK, *sD = decay + SK;
        failed = !ws;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < chunks * groups; item++) {
            if (!ws) continue;
            int64_t c = item / groups, gr = item % groups, v0 = gr * group, nv = MIN(group, vecs - v0);
            REAL *gAc = gA + c * N * E;
            for (int64_t v = 0; v < nv; v++) for (int64_t n = 0; n < N; n++) {
                int64_t e = (v0 + v) * LANES;
                a[v * N + n] = NAME(load)(A + n * E + e, MIN(LANES, E - e)) * SCALE;
            }
            memset(sD, 0, nv * sizeof(V));
            for (int64_t b = c * chunk; b < MIN(nb, (c + 1) * chunk); b++) {
                for (int64_t v = 0; v < nv; v++) for (int64_t n = 0; n < N; n++) {
                    int64_t e = (v0 + v) * LANES;
                    gh[v * N + n] = ghT ? NAME(load)(ghT + (b * N + n) * E + e, MIN(LANES, E - e)) : (V){0};
                }
                for (int64_t s = segs - 1; s >= 0; s--) {
                    int64_t t0 = s * S, len = MIN(S, T - t0);
                    const REAL *from = s ? starts + (b * (segs - 1) + s - 1) * N * E : h0 ? h0 + b * N * E : 0;
                    const REAL *Bs = B + b * k[10] + t0 * k[11], *Cs = C + b * k[12] + t0 * k[13];
                    for (int64_t t = 0; t < len; t++) for (int64_t v = 0; v < nv; v++) {
                        int64_t e = (v0 + v) * LANES, m = MIN(LANES, E - e), i = v * S + t, o = (b * T + t0 + t) * E + e;
                        d[i] = NAME(get)(dt, b * k[8] + (t0 + t) * k[9] + e, dh, m);
                        uu[i] = NAME(get)(u, b * k[6] + (t0 + t) * k[7] + e, uh, m);
                        g[i] = NAME(get)(gy, o, yh, m);
                        if (z) {
                            V q = NAME(get)(z, b * k[16] + (t0 + t) * k[17] + e, zh, m), s = NAME(sigmoid)(q), De = NAME(load)(D + e, m);
                            V sk = NAME(get)(skip, b * k[18] + (t0 + t) * k[19] + e, uh, m), w = NAME(load)(y + o, m) + De * sk;
                            NAME(put)(p[19], o, zh, g[i] * w * NAME(silu_slope)(q, s), m);
                            g[i] *= q * s;
                            sD[v] += g[i] * sk;
                            if (p[21]) NAME(put)(p[21], o, uh, g[i] * De, m);
                            d[i] = NAME(softplus)(d[i]);
                        }
                        x[i] = d[i] * uu[i]; sd[i] = sx[i] = (V){0};
                    }
                    for (int64_t n = 0; n < N;) {
                        const int K = n + TILE <= N ? TILE : 1;
                        memset(qB, 0, 2 * SK * sizeof(V));
                        for (int64_t v = 0; v < nv; v++) {
                            int64_t e = (v0 + v) * LANES, m = MIN(LANES, E - e), i = v * S, j = v * N + n;
                            const REAL *f = from ? from + n * E + e : 0;
                            REAL *ga = gAc + n * E + e;
                            if (K == TILE) NAME(tile)(TILE, len, d + i, x + i, g + i, a + j, gh + j, sd + i, sx + i, qB, qC, Bs + n, k[11], Cs + n, k[13], before, decay, f, ga, E, m);
                            else NAME(tile)(1, len, d + i, x + i, g + i, a + j, gh + j, sd + i, sx + i, qB, qC, Bs + n, k[11], Cs + n, k[13], before, decay, f, ga, E, m);
                        }
                        REAL *pB = gB + ((gr * nb + b) * T + t0) * N + n, *pC = gC + ((gr * nb + b) * T + t0) * N + n;
                        for (int64_t t = 0; t < len; t++) for (int i = 0; i < K; i++) {
                            pB[t * N + i] = NAME(total)(qB[t * K + i]); pC[t * N + i] = NAME(total)(qC[t * K + i]);
                        }
                        n += K;
                    }
                    for (int64_t t = 0; t < len; t++) for (int64_t v = 0; v < nv; v++) {
                        int64_t e = (v0 + v) * LANES, m = MIN(LANES, E - e), i = v * S + t, o = (b * T + t0 + t) * E + e;
                        V su = sx[i] * d[i], st = sx[i] * uu[i] + sd[i] * UNSCALE;
                        if (z && !p[21]) su += g[i] * NAME(load)(D + e, m);
                        if (z) st *= NAME(softplus_slope)(NAME(get)(dt, b * k[8] + (t0 + t) * k[9] + e, dh, m));
                        NAME(put)(p[9], o, uh, su, m);
                        NAME(put)(p[10], o, dh, st, m);
                    }
                }
                if (gh0) for (int64_t v = 0; v < nv; v++) for (int64_t n = 0; n < N; n++) {
                    int64_t e = (v0 + v) * LANES;
                    NAME(store)(gh0 + (b * N + n) * E + e, gh[v * N + n], MIN(LANES, E - e));
                }
            }
            if (z) for (int64_t v = 0; v < nv; v++) {
                int64_t e = (v0 + v) * LANES;
                NAME(store)(gD + c * E + e, sD[v], MIN(LANES, E - e));
            }
        }
        const int64_t an = N * E, bn = nb * T * N;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < an; i++) for (int64_t c = 1; c < chunks; c++) gA[i] += gA[c * an + i];
        if (z) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < E; i++) for (int64_t c = 1; c < chunks; c++) gD[i] += gD[c * E + i];
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < bn; i++) for (int64_t c = 1; c < groups; c++) { gB[i] += gB[c * bn + i]; gC[i] += gC[c * bn + i]; }
        free(ws);
        RESTORE;
    }
    return failed;
}

/* K states of LANES channels backwards in time, with every factor the mean over two runs: what passes a change between them.
   h and h1 are the runs' states after the last token; `near` is the step of an exponent below which a ratio would lose digits. */
INLINE void NAME(between)(const int K, int64_t len, const V *d, const V *d1, const V *x, const V *x1, const V *g, const V *a,
                          const V *h, const V *h1, V *gh, V *gdt, V *gx, V *gB, V *gC, const REAL *B, const REAL *B1,
                          const REAL *C, const REAL *C1, int64_t N, const V *before, const V *decay, const V *before1, const V *decay1, REAL near) {
    V H[TILE], H1[TILE], G[TILE];
    for (int k = 0; k < K; k++) { H[k] = h[k]; H1[k] = h1[k]; G[k] = gh[k]; }
    for (int64_t t = len - 1; t >= 0; t--) {
        V step = d[t] - d1[t], xt = (x[t] + x1[t]) * (REAL).5, gy = g[t], sd = gdt[t], sx = gx[t];
#pragma GCC unroll 8
        for (int k = 0; k < K; k++) {
            int64_t i = t * K + k, j = t * N + k;
            V q = G[k] + gy * ((C[j] + C1[j]) * (REAL).5), fade = (decay[i] + decay1[i]) * (REAL).5, p = step * a[k];
            I close = (p < near) & (p > -near);
            V ratio = (decay[i] - decay1[i]) / p, slope = (V)(((I)ratio & ~close) | ((I)(fade * (REAL)UNSCALE) & close));
            gC[i] += gy * ((H[k] + H1[k]) * (REAL).5);
            gB[i] += q * xt;
            sx += q * ((B[j] + B1[j]) * (REAL).5);
            sd += q * ((before[i] + before1[i]) * (REAL).5) * slope * a[k];
            G[k] = q * fade; H[k] = before[i]; H1[k] = before1[i];
        }
        gdt[t] = sd; gx[t] = sx;
    }
    for (int k = 0; k < K; k++) gh[k] = G[k];
}

/* both runs' states once more, then the above, for K states of one vector of channels */
INLINE void NAME(pair)(const int K, int64_t T, const V *d, const V *x, const V *g, const V *a, V *gh, V *gd, V *gx, V *gB, V *gC,
                       const REAL *B, const REAL *B1, const REAL *C, const REAL *C1, int64_t N, V *ws, const REAL *from, const REAL *from1,
                       int64_t E, int64_t m, REAL near) {
    V h[TILE], h1[TILE], *before = ws, *decay = ws + T * TILE, *before1 = ws + 2 * T * TILE, *decay1 = ws + 3 * T * TILE;
    for (int k = 0; k < K; k++) { h[k] = from ? NAME(load)(from + k * E, m) : (V){0}; h1[k] = from1 ? NAME(load)(from1 + k * E, m) : (V){0}; }
    NAME(ahead)(K, 1, T, d, x, a, h, 0, B, N, C, N, before, decay);
    NAME(ahead)(K, 1, T, d + T, x + T, a, h1, 0, B1, N, C1, N, before1, decay1);
    NAME(between)(K, T, d, d + T, x, x + T, g, a, h, h1, gh, gd, gx, gB, gC, B, B1, C, C1, N, before, decay, before1, decay1, near);
}

/* p: u dt A B C h0, the other run's u dt B C h0, gy ghT | gu gdt gB gC gh0, all packed;  k: b t e n threads, channels in a group.
   gB and gC are (groups b t n); the sums end in the first group. */
int NAME(scan_secant)(void **p, const int64_t *k) {
    const REAL *u = p[0], *dt = p[1], *A = p[2], *B = p[3], *C = p[4], *h0 = p[5], *u1 = p[6], *dt1 = p[7], *B1 = p[8], *C1 = p[9], *h1 = p[10];
    const REAL *gy = p[11], *ghT = p[12], near = sizeof(REAL) == 8 ? 6e-6 : 5e-3;
    REAL *gu = p[13], *gdt = p[14], *gB = p[15], *gC = p[16], *gh0 = p[17];
    const int64_t nb = k[0], T = k[1], E = k[2], N = k[3], nt = k[4], group = k[5] / LANES, vecs = (E + LANES - 1) / LANES, groups = (vecs + group - 1) / group;
    int failed = 0;
#pragma omp parallel num_threads(nt) reduction(|:failed)
    {
        FLUSH;
        const int64_t TK = T * TILE;
        V *ws = workspace(((9 + 8) * T + 2 * N + 6 * TK + 2 * T * N) * sizeof(V));
        V *d = ws, *uu = d + 2 * T, *x = uu + 2 * T, *g = x + 2 * T, *sd = g + T, *sx = sd + T, *a = sx + T, *gh = a + N;
        V *qB = gh + N, *qC = qB + T * N, *runs = qC + T * N;
        failed = !ws;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < nb * groups; item++) {
            if (!ws) continue;
            int64_t b = item / groups, gr = item % groups, v0 = gr * group, v1 = MIN(v0 + group, vecs);
            const REAL *Bs = B + b * T * N, *Cs = C + b * T * N, *Bs1 = B1 + b * T * N, *Cs1 = C1 + b * T * N;
            memset(qB, 0, 2 * T * N * sizeof(V));
            for (int64_t v = v0; v < v1; v++) {
                int64_t e = v * LANES, m = MIN(LANES, E - e);
                for (int64_t n = 0; n < N; n++) {
                    a[n] = NAME(load)(A + n * E + e, m) * SCALE;
                    gh[n] = ghT ? NAME(load)(ghT + (b * N + n) * E + e, m) : (V){0};
                }
                for (int64_t t = 0; t < T; t++) {
                    int64_t i = (b * T + t) * E + e;
                    d[t] = NAME(load)(dt + i, m); d[T + t] = NAME(load)(dt1 + i, m);
                    uu[t] = NAME(load)(u + i, m); uu[T + t] = NAME(load)(u1 + i, m);
                    x[t] = d[t] * uu[t]; x[T + t] = d[T + t] * uu[T + t];
                    g[t] = NAME(load)(gy + i, m); sd[t] = sx[t] = (V){0};
                }
                for (int64_t n = 0; n < N;) {
                    const REAL *f = h0 ? h0 + (b * N + n) * E + e : 0, *f1 = h1 ? h1 + (b * N + n) * E + e : 0;
                    const int K = n + TILE <= N ? TILE : 1;
                    if (K == TILE) NAME(pair)(TILE, T, d, x, g, a + n, gh + n, sd, sx, qB + n * T, qC + n * T, Bs + n, Bs1 + n, Cs + n, Cs1 + n, N, runs, f, f1, E, m, near);
                    else NAME(pair)(1, T, d, x, g, a + n, gh + n, sd, sx, qB + n * T, qC + n * T, Bs + n, Bs1 + n, Cs + n, Cs1 + n, N, runs, f, f1, E, m, near);
                    n += K;
                }
                for (int64_t t = 0; t < T; t++) {
                    int64_t i = (b * T + t) * E + e;
                    NAME(store)(gu + i, sx[t] * (d[t] + d[T + t]) * (REAL).5, m);
                    NAME(store)(gdt + i, sx[t] * (uu[t] + uu[T + t]) * (REAL).5 + sd[t], m);
                }
                if (gh0) for (int64_t n = 0; n < N; n++) NAME(store)(gh0 + (b * N + n) * E + e, gh[n], m);
            }
            REAL *pB = gB + (gr * nb + b) * T * N, *pC = gC + (gr * nb + b) * T * N;
            for (int64_t n = 0; n < N;) {
                const int K = n + TILE <= N ? TILE : 1;
                for (int64_t t = 0; t < T; t++) for (int i = 0; i < K; i++) {
                    pB[t * N + n + i] = NAME(total)(qB[n * T + t * K + i]); pC[t * N + n + i] = NAME(total)(qC[n * T + t * K + i]);
                }
                n += K;
            }
        }
        const int64_t bn = nb * T * N;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < bn; i++) for (int64_t c = 1; c < groups; c++) { gB[i] += gB[c * bn + i]; gC[i] += gC[c * bn + i]; }
        free(ws);
        RESTORE;
    }
    return failed;
}

/* p: x out;  k: how many.  out = exp(x), for the test of the polynomial */
int NAME(scan_exp)(void **p, const int64_t *k) {
    for (int64_t i = 0; i < k[0]; i += LANES) {
        int64_t m = MIN(LANES, k[0] - i);
        NAME(store)((REAL *)p[1] + i, NAME(power)(NAME(load)((REAL *)p[0] + i, m) * SCALE), m);
    }
    return 0;
}
#undef LANES
#undef SCALE
#undef UNSCALE
#endif
