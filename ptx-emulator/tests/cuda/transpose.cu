// Transposition through a padded tile of shared memory, for elements of 1, 4 and 16 bytes.

template <typename T, int TILE, int ROWS>
__device__ void transpose(const T *in, T *out, int rows, int columns) {
    __shared__ T tile[TILE][TILE + 1];
    int x = blockIdx.x * TILE + threadIdx.x;
    for (int j = threadIdx.y; j < TILE; j += ROWS) {
        int y = blockIdx.y * TILE + j;
        if (x < columns && y < rows) tile[j][threadIdx.x] = in[(size_t)y * columns + x];
    }
    __syncthreads();
    x = blockIdx.y * TILE + threadIdx.x;
    for (int j = threadIdx.y; j < TILE; j += ROWS) {
        int y = blockIdx.x * TILE + j;
        if (x < rows && y < columns) out[(size_t)y * rows + x] = tile[threadIdx.x][j];
    }
}

extern "C" __global__ void transpose_u8(const unsigned char *in, unsigned char *out, int rows, int columns) {
    transpose<unsigned char, 32, 4>(in, out, rows, columns);
}

extern "C" __global__ void transpose_f32(const float *in, float *out, int rows, int columns) {
    transpose<float, 32, 8>(in, out, rows, columns);
}

extern "C" __global__ void transpose_float4(const float4 *in, float4 *out, int rows, int columns) {
    transpose<float4, 16, 16>(in, out, rows, columns);
}

// Within a warp, without shared memory: 4 x 4 transposes by shuffles.
extern "C" __global__ void transpose_4x4_shuffle(const int *in, int *out) {
    int lane = threadIdx.x & 31, row = lane & 3, base = lane & ~3;
    int4 own = reinterpret_cast<const int4 *>(in)[blockIdx.x * blockDim.x + threadIdx.x];
    int values[4] = {own.x, own.y, own.z, own.w}, result[4];
    for (int step = 0; step < 4; ++step) {
        int give = values[(row + step) & 3];
        result[(row - step) & 3] = __shfl_sync(~0u, give, base + ((row - step) & 3));
    }
    reinterpret_cast<int4 *>(out)[blockIdx.x * blockDim.x + threadIdx.x] =
        make_int4(result[0], result[1], result[2], result[3]);
}
