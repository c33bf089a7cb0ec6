// What the lanes of a warp tell each other, also from divergent code.

extern "C" __global__ void votes(const unsigned *in, unsigned *out) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, value = in[i], *own = out + 8 * i;
    own[0] = __ballot_sync(~0u, value & 1);
    own[1] = __any_sync(~0u, value == 7);
    own[2] = __all_sync(~0u, value < 1000);
    own[3] = __match_any_sync(~0u, value % 5);
    int same;
    own[4] = __match_all_sync(~0u, value / 1000, &same);
    own[5] = same;
    // Odd and even lanes apart.
    if (value & 1) own[6] = __popc(__activemask() & __ballot_sync(__activemask(), value & 2));
    else own[6] = 100 + __popc(__ballot_sync(__activemask(), value & 2));
    __syncwarp();
    own[7] = __popc(__activemask());
}

extern "C" __global__ void warp_reductions(const unsigned *in, unsigned *out) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, value = in[i], *own = out + 8 * i;
    own[0] = __reduce_add_sync(~0u, value);
    own[1] = __reduce_min_sync(~0u, value);
    own[2] = __reduce_max_sync(~0u, value);
    own[3] = __reduce_and_sync(~0u, value | 0x100);
    own[4] = __reduce_or_sync(~0u, value);
    own[5] = __reduce_xor_sync(~0u, value);
    own[6] = __reduce_min_sync(~0u, (int)value - 500);
    own[7] = 0;
    if (threadIdx.x % 4 == 1) own[7] = __reduce_add_sync(0x22222222u, value);
}

extern "C" __global__ void shuffles(const unsigned *in, unsigned *out) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, value = in[i], *own = out + 8 * i;
    own[0] = __shfl_sync(~0u, value, 5);
    own[1] = __shfl_sync(~0u, value, threadIdx.x * 7 + 3, 8);
    own[2] = __shfl_up_sync(~0u, value, 3);
    own[3] = __shfl_down_sync(~0u, value, 2, 16);
    own[4] = __shfl_xor_sync(~0u, value, 9);
    unsigned long long wide = __shfl_xor_sync(~0u, (unsigned long long)value << 20 | threadIdx.x, 1);
    own[5] = (unsigned)wide;
    own[6] = (unsigned)(wide >> 32);
    own[7] = __float_as_uint(__shfl_down_sync(~0u, (float)value, 1));
}

extern "C" __global__ void bits(const unsigned *in, unsigned *out) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, value = in[i] * 2654435761u, *own = out + 16 * i;
    unsigned long long wide = (unsigned long long)value * 0x9E3779B97F4A7C15ull;
    own[0] = __popc(value);
    own[1] = __clz(value);
    own[2] = __ffs(value);
    own[3] = __brev(value);
    own[4] = __byte_perm(value, ~value, 0x5274);
    own[5] = __funnelshift_l(value, i, 11);
    own[6] = __popcll(wide);
    own[7] = __clzll(wide);
    own[8] = __umulhi(value, 0xdeadbeef);
    own[9] = (unsigned)__umul64hi(wide, wide);
    own[10] = __dp4a((int)value, 0x01fe03fc, 1000);
    own[11] = __vadd4(value, 0x01020304);
    own[12] = __sad((int)value, 17, 5u);
    own[13] = __usad(value, 1u << 31, 7u);
    own[14] = (value >> (i & 31)) ^ ((int)value >> 3);
    own[15] = __ffsll(wide & -wide);
}
