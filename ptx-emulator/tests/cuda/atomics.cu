// Histograms and other updates that threads make to the same place.

extern "C" __global__ void histogram_shared(const unsigned char *in, unsigned *bins, int n) {
    __shared__ unsigned own[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) own[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&own[in[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        if (own[i]) atomicAdd(&bins[i], own[i]);
}

extern "C" __global__ void histogram_global(const unsigned char *in, unsigned *bins, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&bins[in[i]], 1u);
}

__device__ double atomic_largest(double *at, double value) {
    unsigned long long *bits = reinterpret_cast<unsigned long long *>(at), seen = *(volatile unsigned long long *)bits;
    while (__longlong_as_double(seen) < value) {
        unsigned long long found = atomicCAS(bits, seen, __double_as_longlong(value));
        if (found == seen) break;
        seen = found;
    }
    return __longlong_as_double(seen);
}

struct Totals {
    int smallest, largest;
    unsigned bits_or, bits_and, bits_xor, wrapped, counted_down, swapped;
    unsigned long long sum, largest_u64;
    float sum_f32;
    unsigned block_sum;
    double sum_f64, largest_f64;
};

extern "C" __global__ void every_atomic(const int *in, Totals *totals, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int value = in[i];
    atomicMin(&totals->smallest, value);
    atomicMax(&totals->largest, value);
    atomicOr(&totals->bits_or, value);
    atomicAnd(&totals->bits_and, value);
    atomicXor(&totals->bits_xor, value);
    atomicInc(&totals->wrapped, 16u);
    atomicDec(&totals->counted_down, 1000u);
    atomicAdd(&totals->swapped, atomicExch(&totals->swapped, 0u));
    atomicAdd(&totals->sum, (unsigned long long)(value & 0xffff));
    atomicMax(&totals->largest_u64, (unsigned long long)(unsigned)value << 8);
    atomicAdd(&totals->sum_f32, (float)(value & 0xff));
    atomicAdd(&totals->sum_f64, value * 0.5);
    atomicSub(&totals->block_sum, 3u);
    atomic_largest(&totals->largest_f64, value * 0.25);
}

// A lock per bucket, taken by one thread of a warp at a time.
extern "C" __global__ void locked_counters(int *locks, volatile int *counters, int buckets, int rounds) {
    int bucket = (blockIdx.x * blockDim.x + threadIdx.x) % buckets;
    for (int round = 0; round < rounds; ++round) {
        bool done = false;
        while (!done) {
            if (atomicCAS(&locks[bucket], 0, 1) == 0) {
                __threadfence();
                counters[bucket] = counters[bucket] + 1;
                __threadfence();
                atomicExch(&locks[bucket], 0);
                done = true;
            }
        }
    }
}
