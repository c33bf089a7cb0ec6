// C = alpha A B + beta C in f32, row-major: 64 x 64 tiles of C, 4 x 4 elements per thread, vectors where they fit.

template <int TILE, int STEP, int EACH>
__device__ void sgemm(int m, int n, int k, float alpha, const float *a, const float *b, float beta, float *c) {
    __shared__ float a_tile[STEP][TILE + 4];
    __shared__ __align__(16) float b_tile[STEP][TILE];
    const int threads = (TILE / EACH) * (TILE / EACH);
    int column = threadIdx.x % (TILE / EACH) * EACH, row = threadIdx.x / (TILE / EACH) * EACH;
    float sums[EACH][EACH] = {};
    for (int k0 = 0; k0 < k; k0 += STEP) {
        for (int i = threadIdx.x; i < TILE * STEP; i += threads) {
            int y = blockIdx.y * TILE + i / STEP, x = k0 + i % STEP;
            a_tile[i % STEP][i / STEP] = y < m && x < k ? a[y * k + x] : 0.0f;
        }
        for (int i = 4 * threadIdx.x; i < TILE * STEP; i += 4 * threads) {
            int y = k0 + i / TILE, x = blockIdx.x * TILE + i % TILE;
            float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (y < k && x + 3 < n && n % 4 == 0) values = *reinterpret_cast<const float4 *>(&b[y * n + x]);
            else if (y < k) {
                values.x = x < n ? b[y * n + x] : 0.0f;
                values.y = x + 1 < n ? b[y * n + x + 1] : 0.0f;
                values.z = x + 2 < n ? b[y * n + x + 2] : 0.0f;
                values.w = x + 3 < n ? b[y * n + x + 3] : 0.0f;
            }
            *reinterpret_cast<float4 *>(&b_tile[i / TILE][i % TILE]) = values;
        }
        __syncthreads();
#pragma unroll
        for (int x = 0; x < STEP; ++x)
            for (int i = 0; i < EACH; ++i)
                for (int j = 0; j < EACH; ++j) sums[i][j] = fmaf(a_tile[x][row + i], b_tile[x][column + j], sums[i][j]);
        __syncthreads();
    }
    for (int i = 0; i < EACH; ++i)
        for (int j = 0; j < EACH; ++j) {
            int y = blockIdx.y * TILE + row + i, x = blockIdx.x * TILE + column + j;
            if (y < m && x < n) c[y * n + x] = alpha * sums[i][j] + (beta == 0.0f ? 0.0f : beta * c[y * n + x]);
        }
}

extern "C" __global__ void __launch_bounds__(256, 2)
sgemm_64x64(int m, int n, int k, float alpha, const float *__restrict__ a, const float *__restrict__ b, float beta,
            float *c) {
    sgemm<64, 16, 4>(m, n, k, alpha, a, b, beta, c);
}
