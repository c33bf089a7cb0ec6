// C++ beyond arithmetic: switches, recursion, pointers to functions, virtual calls, local arrays, constants, assert.
#include <cassert>

__constant__ int table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
__constant__ float scale;
__device__ int counter = 40;
__device__ const char *const words[3] = {"zero", "one", "three"};

extern "C" __global__ void switches(const int *in, int *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int value = in[i];
    switch (value % 9) {
        case 0: value = value * 3 + 1; break;
        case 1: value = value / 7;  // falls through
        case 2: value ^= 0x55; break;
        case 3: value = -value; break;
        case 4: for (int j = 0; j < value % 11; ++j) value += j * j; break;
        case 5: value = table[value & 7]; break;
        case 6: value = value << (value & 3); break;
        case 8: value -= 1000; break;
        default: value = 77;
    }
    out[i] = value;
}

__device__ __noinline__ unsigned ackermann(unsigned m, unsigned n) {
    if (m == 0) return n + 1;
    if (n == 0) return ackermann(m - 1, 1);
    return ackermann(m - 1, ackermann(m, n - 1));
}

extern "C" __global__ void recursion(unsigned *out) { out[threadIdx.x] = ackermann(2, threadIdx.x % 6); }

typedef int (*Step)(int, int);
__device__ __noinline__ int add(int a, int b) { return a + b; }
__device__ __noinline__ int multiply(int a, int b) { return a * b; }
__device__ __noinline__ int exclusive(int a, int b) { return a ^ b; }
__device__ Step steps[3] = {add, multiply, exclusive};

extern "C" __global__ void function_pointers(const int *in, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int value = in[i];
    for (int round = 0; round < 4; ++round) value = steps[(i + round) % 3](value, round + 2);
    out[i] = value;
}

struct Shape {
    __device__ virtual float area() const = 0;
    __device__ virtual ~Shape() {}
};

struct Square : Shape {
    float side;
    __device__ explicit Square(float side) : side(side) {}
    __device__ float area() const override { return side * side; }
};

struct Rectangle : Shape {
    float width, height;
    __device__ Rectangle(float width, float height) : width(width), height(height) {}
    __device__ float area() const override { return width * height; }
};

extern "C" __global__ void virtual_calls(float *out) {
    Square square(threadIdx.x + 1.0f);
    Rectangle rectangle(threadIdx.x + 1.0f, 0.5f);
    const Shape *shapes[2] = {&square, &rectangle};
    out[threadIdx.x] = shapes[threadIdx.x % 2]->area();
}

// An insertion sort of a local array with indices that only the data know, and a struct by value.
struct Window {
    int values[9];
    short from, to;
};

extern "C" __global__ void medians(const int *in, int *out, int n, Window offsets) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int sorted[9], count = 0;
    for (int j = offsets.from; j < offsets.to; ++j) {
        int value = in[(i + offsets.values[j] + n) % n], place = count++;
        while (place > 0 && sorted[place - 1] > value) {
            sorted[place] = sorted[place - 1];
            --place;
        }
        sorted[place] = value;
    }
    out[i] = sorted[count / 2];
}

extern "C" __global__ void constants_and_globals(float *out, int *lengths) {
    out[threadIdx.x] = scale * table[threadIdx.x % 8];
    if (threadIdx.x < 3) {
        int length = 0;
        while (words[threadIdx.x][length]) ++length;
        lengths[threadIdx.x] = length + atomicAdd(&counter, 0);
    }
}

extern "C" __global__ void positive(const int *in) {
    assert(in[threadIdx.x] > 0 && "inputs are positive");
}

extern "C" __global__ void long_division(const long long *in, long long *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long a = in[2 * i], b = in[2 * i + 1];
    out[4 * i] = a / b;
    out[4 * i + 1] = a % b;
    out[4 * i + 2] = (unsigned long long)a / (unsigned long long)b;
    out[4 * i + 3] = (long long)((int)a / ((int)b | 1)) << 32 | (unsigned)((int)a % ((int)b | 1));
}

// A linked list of the squares up to one's own number, on the device's heap. One thread may look after it is gone.
struct Node {
    int square;
    Node *next;
};

extern "C" __global__ void heap(int *out, int late) {
    Node *list = nullptr;
    for (int i = 1; i <= threadIdx.x; ++i) list = new Node{i * i, list};
    int sum = 0;
    for (volatile Node *node = list; node; node = node->next) sum += node->square;
    for (Node *node = list; node;) {
        Node *next = node->next;
        delete node;
        node = next;
    }
    if (threadIdx.x == late) sum += ((volatile Node *)list)->square;
    out[threadIdx.x] = sum;
}
