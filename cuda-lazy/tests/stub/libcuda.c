// A CUDA driver without a GPU, for tests: memory is the host's, streams run at once, and every kernel is
// `store(u64 address, u32 value)`, so that parameters, captures and replays can be seen to arrive.
//
// Environment: STUB_VERSION (13000), STUB_INIT (result of cuInit), STUB_DEVICES (1), STUB_CAPABILITY (90),
// STUB_TOTAL_BYTES (1 GiB), STUB_FAIL ("cuStreamSynchronize=912": that function returns that result).
// Like the real one it refuses calls on a thread without a current context (201).
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef uint64_t Pointer;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, BAD_DEVICE = 101, BAD_CONTEXT = 201, BAD_PTX = 218,
       NOT_FOUND = 500, CAPTURING = 900 };

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 0) : otherwise;
}

static Result injected(const char *function) {
    const char *text = getenv("STUB_FAIL");
    size_t length = strlen(function);
    return text && !strncmp(text, function, length) && text[length] == '=' ? atoi(text + length + 1) : OK;
}

static __thread void *current;
static int contexts[16], retained;
static size_t allocated;

#define TRY(call) do { Result result = (call); if (result) return result; } while (0)
#define ENTER TRY(injected(__func__)); if (!current) return BAD_CONTEXT

// --- driver and devices
Result cuDriverGetVersion(int *version) { TRY(injected(__func__)); *version = (int)setting("STUB_VERSION", 13000); return OK; }
Result cuInit(unsigned flags) { (void)flags; return (Result)setting("STUB_INIT", OK); }
Result cuDeviceGetCount(int *count) { *count = (int)setting("STUB_DEVICES", 1); return OK; }
Result cuGetErrorName(unsigned code, const char **name) {
    *name = code == 912 ? "CUDA_ERROR_FROM_THE_FUTURE" : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : "CUDA_ERROR_STUB";
    return OK;
}
Result cuGetErrorString(unsigned code, const char **text) {
    *text = code == 912 ? "something new" : code == 700 ? "an illegal memory access was encountered" : "stub error";
    return OK;
}
Result cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= setting("STUB_DEVICES", 1)) return BAD_DEVICE;
    *device = ordinal;
    return OK;
}
Result cuDeviceGetName(char *name, int bytes, int device) { (void)device; snprintf(name, (size_t)bytes, "Stub GPU"); return OK; }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)setting("STUB_TOTAL_BYTES", 1 << 30); return OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    int capability = (int)setting("STUB_CAPABILITY", 90);
    switch (attribute) {
    case 1: *value = 1024; break;             // threads per block
    case 16: *value = 4; break;               // multiprocessors
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 97: *value = 232448; break;          // shared memory per block after opting in
    default: *value = 65536;
    }
    return OK;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) { retained++; *context = &contexts[device]; return OK; }
Result cuDevicePrimaryCtxRelease_v2(int device) { (void)device; retained--; return OK; }
Result cuCtxSetCurrent(void *context) { current = context; return OK; }
Result cuCtxSynchronize(void) { ENTER; return OK; }
Result cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = (device ^ peer) == 1; return OK; }
Result cuCtxEnablePeerAccess(void *peer, unsigned flags) {
    static int enabled;
    ENTER;
    if (peer == current || flags) return INVALID;
    return enabled++ ? 704 : OK;
}

// --- memory
Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ENTER;
    *total = (size_t)setting("STUB_TOTAL_BYTES", 1 << 30);
    *free_bytes = *total - allocated;
    return OK;
}
Result cuMemAlloc_v2(Pointer *address, size_t bytes) {
    ENTER;
    size_t *block;
    if (!bytes) return INVALID;
    if (bytes > (size_t)setting("STUB_TOTAL_BYTES", 1 << 30) - allocated) return NO_MEMORY;
    if (!(block = aligned_alloc(256, (bytes + 511) & ~(size_t)255))) return NO_MEMORY;
    *block = bytes;
    memset((char *)block + 256, 0xa5, bytes); // poison
    allocated += bytes;
    *address = (Pointer)(uintptr_t)block + 256;
    return OK;
}
Result cuMemFree_v2(Pointer address) {
    ENTER;
    size_t *block = (size_t *)(uintptr_t)(address - 256);
    allocated -= *block;
    free(block);
    return OK;
}
Result cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    ENTER;
    if (flags != 3 || !(*address = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095))) return INVALID;
    memset(*address, 0xa5, bytes);
    return OK;
}
Result cuMemHostGetDevicePointer_v2(Pointer *device, void *host, unsigned flags) { ENTER; (void)flags; *device = (Pointer)(uintptr_t)host; return OK; }
Result cuMemFreeHost(void *address) { ENTER; free(address); return OK; }

// --- streams, captures, graphs
typedef struct { Pointer address; uint32_t value; } Store;
typedef struct { size_t count; Store nodes[64]; } Graph;
typedef struct { unsigned flags; int priority; Graph *capture; } Stream;

static Result immediate(Stream *stream) { return stream->capture ? CAPTURING : OK; }
static Result run(Graph *graph) {
    for (size_t i = 0; i < graph->count; i++)
        memcpy((void *)(uintptr_t)graph->nodes[i].address, &graph->nodes[i].value, sizeof(uint32_t));
    return OK;
}

Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { ENTER; *least = 0; *greatest = -5; return OK; }
Result cuStreamCreateWithPriority(Stream **stream, unsigned flags, int priority) {
    ENTER;
    if (flags != 1 || priority > 0 || priority < -5) return INVALID; // 1: non-blocking
    *stream = calloc(1, sizeof(Stream));
    **stream = (Stream){flags, priority, NULL};
    return OK;
}
Result cuStreamDestroy_v2(Stream *stream) { ENTER; free(stream); return OK; }
Result cuStreamSynchronize(Stream *stream) { ENTER; return immediate(stream); }
Result cuStreamBeginCapture_v2(Stream *stream, int mode) {
    ENTER;
    if (mode != 1 || stream->capture) return INVALID; // 1: thread-local
    stream->capture = calloc(1, sizeof(Graph));
    return OK;
}
Result cuStreamEndCapture(Stream *stream, Graph **graph) {
    ENTER;
    if (!stream->capture) return INVALID;
    *graph = stream->capture;
    stream->capture = NULL;
    return OK;
}
Result cuGraphGetNodes(Graph *graph, void **nodes, size_t *count) { ENTER; (void)nodes; *count = graph->count; return OK; }
Result cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
    ENTER;
    (void)flags;
    *executable = malloc(sizeof(Graph));
    **executable = *graph;
    return OK;
}
Result cuGraphDestroy(Graph *graph) { ENTER; free(graph); return OK; }
Result cuGraphExecDestroy(Graph *graph) { ENTER; free(graph); return OK; }
Result cuGraphLaunch(Graph *graph, Stream *stream) { ENTER; TRY(immediate(stream)); return run(graph); }

Result cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, Stream *stream) { ENTER; TRY(immediate(stream)); memcpy((void *)(uintptr_t)to, from, bytes); return OK; }
Result cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, Stream *stream) { ENTER; TRY(immediate(stream)); memcpy(to, (void *)(uintptr_t)from, bytes); return OK; }
Result cuMemcpyAsync(Pointer to, Pointer from, size_t bytes, Stream *stream) { ENTER; TRY(immediate(stream)); memmove((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes); return OK; }
Result cuMemsetD8Async(Pointer to, unsigned char value, size_t count, Stream *stream) { ENTER; TRY(immediate(stream)); memset((void *)(uintptr_t)to, value, count); return OK; }
Result cuMemsetD16Async(Pointer to, uint16_t value, size_t count, Stream *stream) { ENTER; TRY(immediate(stream)); for (size_t i = 0; i < count; i++) ((uint16_t *)(uintptr_t)to)[i] = value; return OK; }
Result cuMemsetD32Async(Pointer to, uint32_t value, size_t count, Stream *stream) { ENTER; TRY(immediate(stream)); for (size_t i = 0; i < count; i++) ((uint32_t *)(uintptr_t)to)[i] = value; return OK; }

// --- events: ticks of 1 ms
typedef struct { unsigned flags, tick; } Event;
static unsigned tick;
Result cuEventCreate(Event **event, unsigned flags) { ENTER; *event = calloc(1, sizeof(Event)); (*event)->flags = flags; return OK; }
Result cuEventDestroy_v2(Event *event) { ENTER; free(event); return OK; }
Result cuEventRecord(Event *event, Stream *stream) { ENTER; (void)stream; event->tick = ++tick; return OK; }
Result cuStreamWaitEvent(Stream *stream, Event *event, unsigned flags) { ENTER; (void)stream; (void)event; (void)flags; return OK; }
Result cuEventSynchronize(Event *event) { ENTER; (void)event; return OK; }
Result cuEventQuery(Event *event) { ENTER; return event->tick ? OK : 600; }
Result cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
    ENTER;
    if ((start->flags | end->flags) & 2) return 400; // timing disabled
    *milliseconds = (float)(end->tick - start->tick);
    return OK;
}

// --- modules: PTX text in which `.entry NAME` is looked up; `SYNTAX ERROR` is one
typedef struct { int dynamic_shared_bytes; } Function;
typedef struct { char *ptx; Function function; } Module;
Result cuModuleLoadDataEx(Module **module, const char *ptx, unsigned count, int *options, void **values) {
    ENTER;
    if (count != 2 || options[0] != 5 || options[1] != 6) return INVALID; // error log and its size
    if (strstr(ptx, "SYNTAX ERROR")) {
        snprintf(values[0], (size_t)(uintptr_t)values[1], "ptxas application ptx input, line 5; fatal   : Parsing error near 'SYNTAX'\nptxas fatal   : aborted\n");
        return BAD_PTX;
    }
    *module = calloc(1, sizeof(Module));
    (*module)->ptx = strdup(ptx);
    (*module)->function.dynamic_shared_bytes = 48 << 10;
    return OK;
}
Result cuModuleUnload(Module *module) { ENTER; free(module->ptx); free(module); return OK; }
Result cuModuleGetFunction(Function **function, Module *module, const char *name) {
    char entry[128];
    ENTER;
    snprintf(entry, sizeof entry, ".entry %s(", name);
    *function = &module->function;
    return strstr(module->ptx, entry) ? OK : NOT_FOUND;
}
Result cuFuncGetAttribute(int *value, int attribute, Function *function) {
    ENTER;
    *value = attribute == 0 ? 1024 : attribute == 1 ? 448 : attribute == 4 ? 32 : attribute == 8 ? function->dynamic_shared_bytes : 0;
    return OK;
}
Result cuFuncSetAttribute(Function *function, int attribute, int value) {
    ENTER;
    if (attribute != 8 || value > 232448 - 448) return INVALID;
    function->dynamic_shared_bytes = value;
    return OK;
}
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Function *function, int threads, size_t shared) { ENTER; (void)function; (void)shared; *blocks = 2048 / threads; return OK; }
Result cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared_bytes, Stream *stream, void **parameters, void **extra) {
    Graph one = {1, {{0, 0}}};
    ENTER;
    if (!gx || !gy || !gz || !bx || !by || !bz || parameters || (int)shared_bytes > function->dynamic_shared_bytes) return INVALID;
    if (!extra || extra[0] != (void *)1 || extra[2] != (void *)2 || extra[4] || *(size_t *)extra[3] != 12) return INVALID;
    memcpy(&one.nodes[0].address, extra[1], 8);
    memcpy(&one.nodes[0].value, (char *)extra[1] + 8, 4);
    if (!stream->capture) return run(&one);
    if (stream->capture->count == 64) return INVALID;
    stream->capture->nodes[stream->capture->count++] = one.nodes[0];
    return OK;
}
// Its arguments, one after the other, are the map.
Result cuTensorMapEncodeTiled(uint64_t *map, unsigned type, unsigned rank, void *address, const uint64_t *dimensions,
                              const uint64_t *strides, const unsigned *box, const unsigned *element_strides,
                              unsigned interleave, unsigned swizzle, unsigned promotion, unsigned fill) {
    TRY(injected(__func__));
    if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || rank < 1 || rank > 5) return INVALID;
    map[0] = type | rank << 8 | interleave << 16 | swizzle << 20 | promotion << 24 | fill << 28;
    map[1] = (uintptr_t)address;
    for (unsigned d = 0; d < rank; d++) {
        map[2 + d] = dimensions[d];
        if (d + 1 < rank) map[7 + d] = strides[d];
        map[11 + d] = box[d] | (uint64_t)element_strides[d] << 32;
    }
    return OK;
}
