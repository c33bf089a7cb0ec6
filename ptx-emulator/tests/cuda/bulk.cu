// Hopper: a bulk copy into shared memory that an mbarrier counts, and one back.
#include <cuda/barrier>
#include <cuda/ptx>

#pragma nv_diag_suppress static_var_with_dynamic_init

extern "C" __global__ void bulk_round_trip(const int *in, int *out, int chunks) {
    __shared__ alignas(128) int stage[256];
    __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
    if (threadIdx.x == 0) {
        init(&barrier, blockDim.x);
        cuda::ptx::fence_proxy_async(cuda::ptx::space_shared);
    }
    __syncthreads();
    for (int chunk = 0; chunk < chunks; ++chunk) {
        cuda::barrier<cuda::thread_scope_block>::arrival_token token;
        if (threadIdx.x == 0) {
            cuda::device::memcpy_async_tx(stage, in + 256 * chunk, cuda::aligned_size_t<16>(sizeof(stage)), barrier);
            token = cuda::device::barrier_arrive_tx(barrier, 1, sizeof(stage));
        } else {
            token = barrier.arrive();
        }
        barrier.wait(std::move(token));
        for (int i = threadIdx.x; i < 256; i += blockDim.x) stage[i] = 2 * stage[i] + chunk;
        cuda::ptx::fence_proxy_async(cuda::ptx::space_shared);
        __syncthreads();
        if (threadIdx.x == 0) {
            cuda::ptx::cp_async_bulk(cuda::ptx::space_global, cuda::ptx::space_shared, out + 256 * chunk, stage,
                                     sizeof(stage));
            cuda::ptx::cp_async_bulk_commit_group();
            cuda::ptx::cp_async_bulk_wait_group_read(cuda::ptx::n32_t<0>());
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) cuda::ptx::cp_async_bulk_wait_group(cuda::ptx::n32_t<0>());
}
