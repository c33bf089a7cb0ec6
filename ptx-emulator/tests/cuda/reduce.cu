// Sums of an array: through shared memory, by shuffles, and by tiles of cooperative groups.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

namespace cg = cooperative_groups;

struct Sum {
    template <typename T> __device__ T operator()(T a, T b) const { return a + b; }
};

struct Largest {
    template <typename T> __device__ T operator()(T a, T b) const { return a < b ? b : a; }
};

// A tree over shared memory; the block size is a power of two.
template <typename T, typename Op, int BLOCK>
__device__ void through_shared(const T *in, T *out, int n, T neutral, Op op) {
    __shared__ T partial[BLOCK];
    T value = neutral;
    for (int i = blockIdx.x * BLOCK + threadIdx.x; i < n; i += gridDim.x * BLOCK) value = op(value, in[i]);
    partial[threadIdx.x] = value;
    for (int width = BLOCK / 2; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) partial[threadIdx.x] = op(partial[threadIdx.x], partial[threadIdx.x + width]);
    }
    if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}

// Butterflies of each warp, then of the warps' results.
template <typename T, typename Op>
__device__ T over_block(T value, T neutral, Op op) {
    __shared__ T warps[32];
    for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(~0u, value, offset));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x < 32) {
        value = threadIdx.x < (blockDim.x + 31) / 32 ? warps[threadIdx.x] : neutral;
        for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_down_sync(~0u, value, offset));
    }
    return value;
}

extern "C" __global__ void sum_shared_u32(const unsigned *in, unsigned *out, int n) {
    through_shared<unsigned, Sum, 128>(in, out, n, 0u, Sum{});
}

extern "C" __global__ void max_shared_f64(const double *in, double *out, int n) {
    through_shared<double, Largest, 64>(in, out, n, -1e300, Largest{});
}

// The last block to finish adds the blocks' sums up (Harris and Garland; CUDA's threadFenceReduction pattern).
extern "C" __global__ void sum_shuffle_u64(const unsigned *in, unsigned long long *partial, unsigned *done,
                                           unsigned long long *out, int n) {
    unsigned long long value = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) value += in[i];
    value = over_block(value, 0ull, Sum{});
    __shared__ bool last;
    if (threadIdx.x == 0) {
        __stcg(&partial[blockIdx.x], value);
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        __threadfence();
        unsigned long long total = 0;
        for (int block = 0; block < gridDim.x; ++block) total += __ldcg(&partial[block]);
        *out = total;
        *done = 0;
    }
}

// Tiles of 8 threads; one thread of each adds to the block's total.
extern "C" __global__ void sum_tiles_i32(const int *in, int *out, int n) {
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<8> tile = cg::tiled_partition<8>(block);
    __shared__ int total;
    if (block.thread_rank() == 0) total = 0;
    cg::sync(block);
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int value = i < n ? in[i] : 0;
    for (int offset = tile.size() / 2; offset > 0; offset /= 2) value += tile.shfl_down(value, offset);
    if (tile.thread_rank() == 0) atomicAdd(&total, value);
    block.sync();
    cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
    int largest = cg::reduce(warp, i < n ? in[i] : INT_MIN, cg::greater<int>());
    if (warp.meta_group_rank() == 0 && warp.thread_rank() == 0) {
        out[2 * blockIdx.x] = total;
        out[2 * blockIdx.x + 1] = largest;
    }
}
