// Device mathematics as libdevice and the approximate instructions compute it; halves, bfloat16, fp8.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void functions_f32(const float *in, float *out) {
    float x = in[blockIdx.x * blockDim.x + threadIdx.x], *own = out + 16 * (blockIdx.x * blockDim.x + threadIdx.x);
    own[0] = expf(x);
    own[1] = logf(fabsf(x) + 1e-3f);
    own[2] = sinf(x);
    own[3] = cosf(x);
    own[4] = tanhf(x);
    own[5] = sqrtf(fabsf(x));
    own[6] = rsqrtf(fabsf(x) + 0.25f);
    own[7] = powf(fabsf(x), 1.7f);
    own[8] = erff(x);
    own[9] = 1.0f / (x + 100.0f);
    own[10] = fmodf(x, 3.0f);
    own[11] = atan2f(x, 2.0f);
    own[12] = floorf(x) + ceilf(x) * 2.0f + truncf(x) * 4.0f + rintf(x) * 8.0f;
    own[13] = exp2f(x) + log2f(fabsf(x) + 1.0f);
    own[14] = cbrtf(x);
    own[15] = hypotf(x, 3.0f);
}

extern "C" __global__ void approximations_f32(const float *in, float *out) {
    float x = in[blockIdx.x * blockDim.x + threadIdx.x], *own = out + 8 * (blockIdx.x * blockDim.x + threadIdx.x);
    own[0] = __expf(x);
    own[1] = __logf(fabsf(x) + 1e-3f);
    own[2] = __sinf(x);
    own[3] = __cosf(x);
    own[4] = __fdividef(x, 7.0f);
    own[5] = __frsqrt_rn(fabsf(x) + 0.25f);
    own[6] = __fmaf_rz(x, 1.1f, 0.3f) + __fadd_ru(x, 1e-7f) + __fmul_rd(x, 1.1f);
    own[7] = __saturatef(x);
}

extern "C" __global__ void functions_f64(const double *in, double *out) {
    double x = in[blockIdx.x * blockDim.x + threadIdx.x], *own = out + 8 * (blockIdx.x * blockDim.x + threadIdx.x);
    own[0] = exp(x);
    own[1] = log(fabs(x) + 1e-3);
    own[2] = sin(x);
    own[3] = sqrt(fabs(x));
    own[4] = 1.0 / (x + 100.0);
    own[5] = pow(fabs(x), 1.7);
    own[6] = fma(x, x, -1.0) + floor(x);
    own[7] = rint(x) + (double)(long long)(x * 1e6) + (double)(float)x;
}

extern "C" __global__ void conversions(const float *in, int *out) {
    float x = in[blockIdx.x * blockDim.x + threadIdx.x];
    int *own = out + 12 * (blockIdx.x * blockDim.x + threadIdx.x);
    own[0] = (int)x;
    own[1] = __float2int_rn(x);
    own[2] = __float2int_ru(x);
    own[3] = __float2int_rd(x);
    own[4] = (unsigned char)(int)x;
    own[5] = (signed char)(int)x;
    own[6] = __float_as_int((float)(short)(int)(x * 100.0f));
    own[7] = __half_as_ushort(__float2half_rn(x));
    own[8] = __half_as_ushort(__float2half_rz(x));
    own[9] = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    own[10] = (int)(long long)((double)x * 1e3);
    own[11] = (int)__float2uint_rz(fabsf(x) * 1e6f);
}

extern "C" __global__ void halves(const half2 *a, const half2 *b, half2 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    half2 *own = out + 8 * i;
    own[0] = __hadd2(a[i], b[i]);
    own[1] = __hmul2(a[i], b[i]);
    own[2] = __hfma2(a[i], b[i], __float2half2_rn(0.5f));
    own[3] = __hmax2(a[i], b[i]);
    own[4] = __hneg2(__habs2(a[i]));
    own[5] = __hlt2(a[i], b[i]);
    own[6] = __halves2half2(__hsub(__low2half(a[i]), __high2half(b[i])), __int2half_rn(i));
    own[7] = __floats2half2_rn(__low2float(a[i]) * 3.0f, __high2float(b[i]) * 3.0f);
}

extern "C" __global__ void bfloats(const __nv_bfloat162 *a, const __nv_bfloat162 *b, __nv_bfloat162 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    __nv_bfloat162 *own = out + 6 * i;
    own[0] = __hadd2(a[i], b[i]);
    own[1] = __hmul2(a[i], b[i]);
    own[2] = __hfma2(a[i], b[i], a[i]);
    own[3] = __hmin2(a[i], b[i]);
    own[4] = __hneg2(a[i]);
    own[5] = __floats2bfloat162_rn(__low2float(a[i]) * 3.0f, __high2float(b[i]) * 3.0f);
}
