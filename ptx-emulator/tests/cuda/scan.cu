// Inclusive prefix sums: of a block, and of a whole array in one pass with look-back (Merrill and Garland, 2016).

__device__ unsigned warp_scan(unsigned value) {
    for (int offset = 1; offset < 32; offset *= 2) {
        unsigned before = __shfl_up_sync(~0u, value, offset);
        if ((threadIdx.x & 31) >= offset) value += before;
    }
    return value;
}

__device__ unsigned block_scan(unsigned value) {
    __shared__ unsigned warps[32];
    unsigned own = warp_scan(value);
    if ((threadIdx.x & 31) == 31) warps[threadIdx.x >> 5] = own;
    __syncthreads();
    if (threadIdx.x < 32) warps[threadIdx.x] = warp_scan(threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : 0);
    __syncthreads();
    return threadIdx.x < 32 ? own : own + warps[(threadIdx.x >> 5) - 1];
}

extern "C" __global__ void scan_blocks(const unsigned *in, unsigned *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = block_scan(in[i]);
}

// A block's state and its sum in one word, so that they are seen together.
enum State : unsigned long long { EMPTY = 0, OWN = 1ull << 32, PREFIX = 2ull << 32 };

extern "C" __global__ void scan_look_back(const unsigned *in, unsigned *out, unsigned *tickets,
                                          volatile unsigned long long *states, int n) {
    // Blocks take their place in the order in which they start, so that those before them have started.
    __shared__ unsigned ticket, before;
    if (threadIdx.x == 0) ticket = atomicAdd(tickets, 1);
    __syncthreads();
    unsigned place = ticket, i = place * blockDim.x + threadIdx.x;
    unsigned sum = block_scan(i < n ? in[i] : 0);
    if (threadIdx.x == blockDim.x - 1) {
        if (place > 0) states[place] = OWN | sum;
        unsigned total = 0;
        for (int other = (int)place - 1; other >= 0;) {
            unsigned long long state = states[other];
            if (state == EMPTY) continue;
            total += (unsigned)state;
            other = (state & PREFIX) ? -1 : other - 1;
        }
        states[place] = PREFIX | (total + sum);
        before = total;
    }
    __syncthreads();
    if (i < n) out[i] = before + sum;
}
