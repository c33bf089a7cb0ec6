// Asynchronous copies into shared memory: cp.async by hand, cuda::pipeline, and cuda::barrier.
#include <cooperative_groups.h>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cuda_pipeline_primitives.h>

#pragma nv_diag_suppress static_var_with_dynamic_init

// out[i] = in[i] + in[i with its thread mirrored in the chunk], one chunk of blockDim elements at a time, two in flight.
extern "C" __global__ void by_primitives(const int4 *in, int4 *out, int chunks) {
    __shared__ int4 stage[2][64];
    __pipeline_memcpy_async(&stage[0][threadIdx.x], &in[threadIdx.x], 16);
    __pipeline_commit();
    for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 1 < chunks)
            __pipeline_memcpy_async(&stage[(chunk + 1) & 1][threadIdx.x], &in[(chunk + 1) * 64 + threadIdx.x], 16);
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
        int4 own = stage[chunk & 1][threadIdx.x], other = stage[chunk & 1][63 - threadIdx.x];
        out[chunk * 64 + threadIdx.x] =
            make_int4(own.x + other.x, own.y + other.y, own.z + other.z, own.w + other.w);
        __syncthreads();
    }
}

// The tail beyond `valid` bytes is filled with zeros.
extern "C" __global__ void with_zero_fill(const int4 *in, int4 *out, int valid) {
    __shared__ int4 stage[64];
    int left = valid - 16 * (int)threadIdx.x;
    __pipeline_memcpy_async(&stage[threadIdx.x], &in[threadIdx.x], 16, left >= 16 ? 0 : left <= 0 ? 16 : 16 - left);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    out[threadIdx.x] = stage[63 - threadIdx.x];
}

extern "C" __global__ void by_pipeline(const int *in, int *out, int chunks) {
    __shared__ int stage[2][128];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    auto block = cooperative_groups::this_thread_block();
    auto pipe = cuda::make_pipeline(block, &state);
    auto fetch = [&](int chunk) {
        pipe.producer_acquire();
        cuda::memcpy_async(&stage[chunk & 1][threadIdx.x], &in[chunk * 128 + threadIdx.x], cuda::aligned_size_t<4>(4), pipe);
        pipe.producer_commit();
    };
    fetch(0);
    for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 1 < chunks) fetch(chunk + 1);
        pipe.consumer_wait();
        out[chunk * 128 + threadIdx.x] = 3 * stage[chunk & 1][threadIdx.x ^ 127] + 1;
        pipe.consumer_release();
    }
    // The pipeline's end counts warps without ordering what lanes did before (match.sync orders no memory).
    __syncthreads();
}

// Warps hand a baton around: a barrier of 64 threads, arrived at and waited for apart.
extern "C" __global__ void by_barrier(int *out, int rounds) {
    __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
    __shared__ int box[64];
    if (threadIdx.x == 0) init(&barrier, 64);
    __syncthreads();
    int value = threadIdx.x;
    for (int round = 0; round < rounds; ++round) {
        box[threadIdx.x] = value;
        auto token = barrier.arrive();
        value += round;
        barrier.wait(std::move(token));
        int other = box[(threadIdx.x + 33) % 64];
        barrier.arrive_and_wait();
        value += other;
    }
    out[threadIdx.x] = value;
}
