// Tensor cores through CUDA's warp matrix functions: one 16 x 16 tile of C per warp.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

// C (m x n, f32) = A (m x k) B, where B lies k x n (row_major) or n x k (col_major).
template <typename T, typename Layout>
__device__ void product(const T *a, const T *b, float *c, int n, int k, int stride) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a_part;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, Layout> b_part;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    const bool rows = std::is_same<Layout, wmma::row_major>::value;
    for (int x = 0; x < k; x += 16) {
        wmma::load_matrix_sync(a_part, a + blockIdx.y * 16 * k + x, k);
        wmma::load_matrix_sync(b_part, rows ? b + x * stride + blockIdx.x * 16 : b + blockIdx.x * 16 * stride + x, stride);
        wmma::mma_sync(sum, a_part, b_part, sum);
    }
    for (int i = 0; i < sum.num_elements; ++i) sum.x[i] *= 0.5f;
    wmma::store_matrix_sync(c + blockIdx.y * 16 * n + blockIdx.x * 16, sum, n, wmma::mem_row_major);
}

extern "C" __global__ void wmma_f16_row(const half *a, const half *b, float *c, int n, int k) {
    product<half, wmma::row_major>(a, b, c, n, k, n);
}

extern "C" __global__ void wmma_f16_column(const half *a, const half *b, float *c, int n, int k) {
    product<half, wmma::col_major>(a, b, c, n, k, k);
}

extern "C" __global__ void wmma_bf16_row(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int n, int k) {
    product<__nv_bfloat16, wmma::row_major>(a, b, c, n, k, n);
}

extern "C" __global__ void wmma_bf16_column(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int n, int k) {
    product<__nv_bfloat16, wmma::col_major>(a, b, c, n, k, k);
}

// C += A B with operands staged in shared memory and C read as an accumulator.
extern "C" __global__ void wmma_f16_shared(const half *a, const half *b, float *c) {
    __shared__ half a_tile[16 * 24], b_tile[16 * 24];
    for (int i = threadIdx.x; i < 256; i += 32) {
        a_tile[i / 16 * 24 + i % 16] = a[i];
        b_tile[i / 16 * 24 + i % 16] = b[i];
    }
    __syncwarp();
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> a_part;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> b_part;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::load_matrix_sync(a_part, a_tile, 24);
    wmma::load_matrix_sync(b_part, b_tile, 24);
    wmma::load_matrix_sync(sum, c, 16, wmma::mem_row_major);
    wmma::mma_sync(sum, a_part, b_part, sum);
    wmma::store_matrix_sync(c, sum, 16, wmma::mem_row_major);
}

// One product of every other shape and type, dense operands, columns of B and C where the layout says so.
template <int M, int N, int K, typename T, typename Sum, typename Loaded = T>
__device__ void once(const T *a, const T *b, const Sum *c, Sum *d) {
    wmma::fragment<wmma::matrix_a, M, N, K, Loaded, wmma::col_major> a_part;
    wmma::fragment<wmma::matrix_b, M, N, K, Loaded, wmma::row_major> b_part;
    wmma::fragment<wmma::accumulator, M, N, K, Sum> sum;
    wmma::load_matrix_sync(a_part, a, M);
    wmma::load_matrix_sync(b_part, b, N);
    wmma::load_matrix_sync(sum, c, M, wmma::mem_col_major);
    wmma::mma_sync(sum, a_part, b_part, sum);
    wmma::store_matrix_sync(d, sum, N, wmma::mem_row_major);
}

extern "C" __global__ void wmma_f16_m32n8k16(const half *a, const half *b, const half *c, half *d) {
    once<32, 8, 16>(a, b, c, d);
}

extern "C" __global__ void wmma_bf16_m8n32k16(const __nv_bfloat16 *a, const __nv_bfloat16 *b, const float *c,
                                              float *d) {
    once<8, 32, 16>(a, b, c, d);
}

extern "C" __global__ void wmma_s8_m16n16k16(const signed char *a, const signed char *b, const int *c, int *d) {
    once<16, 16, 16>(a, b, c, d);
}

extern "C" __global__ void wmma_u8_m32n8k16(const unsigned char *a, const unsigned char *b, const int *c, int *d) {
    once<32, 8, 16>(a, b, c, d);
}

extern "C" __global__ void wmma_tf32_m16n16k8(const float *a, const float *b, const float *c, float *d) {
    once<16, 16, 8, float, float, wmma::precision::tf32>(a, b, c, d);
}

extern "C" __global__ void wmma_f64_m8n8k4(const double *a, const double *b, const double *c, double *d) {
    once<8, 8, 4>(a, b, c, d);
}
