//! The functions of the host library.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::Path;

use crate::Error;
use crate::types::{InitAttrV1, ModuleHandle, StreamHandle, TeamConfigV1, TeamId, UniqueIdV1};

macro_rules! api {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        /// Every function that this crate knows, found when the library was opened.
        ///
        /// Their contracts are those of NVSHMEM's documentation. *Collective* ones are called by all PEs, of the team
        /// where there is one. Streams are `CUstream`s; destinations of puts and collectives are symmetric memory.
        pub struct Api {
            $($(#[$doc])* pub $name: unsafe extern "C" fn($($ty),*) $(-> $ret)?,)*
            /// Never closed: NVSHMEM has threads, and handlers for the process's end, that run its code.
            _library: ManuallyDrop<libloading::Library>,
        }

        impl Api {
            pub(crate) fn load(library: libloading::Library, path: &Path) -> Result<Self, Error> {
                $(
                    let missing = |_| Error::NoSymbol { path: path.to_owned(), symbol: stringify!($name) };
                    // SAFETY: the signature is the one in NVSHMEM's headers; the library is kept beside the pointer.
                    let $name = unsafe {
                        *library
                            .get::<unsafe extern "C" fn($($ty),*) $(-> $ret)?>(concat!(stringify!($name), "\0"))
                            .map_err(missing)?
                    };
                )*
                Ok(Self { $($name,)* _library: ManuallyDrop::new(library) })
            }
        }
    };
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Api")
    }
}

api! {
    /// Fills in an id for [`crate::types::INIT_WITH_UNIQUEID`], on one PE.
    fn nvshmemx_get_uniqueid(id: *mut UniqueIdV1) -> c_int;
    /// Writes rank, ranks and id into the attributes.
    fn nvshmemx_set_attr_uniqueid_args(rank: c_int, ranks: c_int, id: *const UniqueIdV1, attr: *mut InitAttrV1) -> c_int;
    /// Writes the address of an `MPI_Comm` into the attributes.
    fn nvshmemx_set_attr_mpi_comm_args(comm: *mut c_void, attr: *mut InitAttrV1) -> c_int;
    /// Collective: initialises on the calling thread's current device.
    fn nvshmemx_hostlib_init_attr(flags: u32, attr: *mut InitAttrV1) -> c_int;
    /// Collective: the end.
    fn nvshmemx_hostlib_finalize();
    /// See [`crate::types::STATUS_IS_INITIALIZED`].
    fn nvshmemx_init_status() -> c_int;
    /// The release.
    fn nvshmemx_vendor_get_version_info(major: *mut c_int, minor: *mut c_int, patch: *mut c_int);
    /// The version of the OpenSHMEM specification.
    fn nvshmem_info_get_version(major: *mut c_int, minor: *mut c_int);
    /// The implementation's name, at most 256 bytes.
    fn nvshmem_info_get_name(name: *mut c_char);

    /// This PE.
    fn nvshmem_my_pe() -> c_int;
    /// Number of PEs.
    fn nvshmem_n_pes() -> c_int;

    /// Collective: symmetric memory; null where there is none left.
    fn nvshmem_malloc(bytes: usize) -> *mut c_void;
    /// Collective: zeroed symmetric memory.
    fn nvshmem_calloc(count: usize, bytes: usize) -> *mut c_void;
    /// Collective: aligned symmetric memory.
    fn nvshmem_align(alignment: usize, bytes: usize) -> *mut c_void;
    /// Collective: frees symmetric memory.
    fn nvshmem_free(memory: *mut c_void);
    /// Another PE's copy as a local address, null without a path for loads and stores.
    fn nvshmem_ptr(memory: *const c_void, pe: c_int) -> *mut c_void;
    /// The multicast address of a team's copies, or null.
    fn nvshmemx_mc_ptr(team: TeamId, memory: *const c_void) -> *mut c_void;
    /// Lets puts read from memory outside the symmetric heap.
    fn nvshmemx_buffer_register(memory: *mut c_void, bytes: usize) -> c_int;
    /// Ends that.
    fn nvshmemx_buffer_unregister(memory: *mut c_void) -> c_int;

    /// Writes NVSHMEM's state into a loaded module.
    fn nvshmemx_cumodule_init(module: ModuleHandle) -> c_int;
    /// Before the module is unloaded.
    fn nvshmemx_cumodule_finalize(module: ModuleHandle) -> c_int;

    /// This PE's number in a team, -1 if it is not in it.
    fn nvshmem_team_my_pe(team: TeamId) -> c_int;
    /// PEs of a team.
    fn nvshmem_team_n_pes(team: TeamId) -> c_int;
    /// A PE's number in another team, -1 if it is not in it.
    fn nvshmem_team_translate_pe(team: TeamId, pe: c_int, other: TeamId) -> c_int;
    /// Collective over the parent: a team of every `stride`-th PE.
    fn nvshmem_team_split_strided(parent: TeamId, start: c_int, stride: c_int, size: c_int, config: *const TeamConfigV1, mask: c_long, team: *mut TeamId) -> c_int;
    /// Collective over the parent: rows and columns of `x_range` PEs.
    fn nvshmem_team_split_2d(parent: TeamId, x_range: c_int, x_config: *const TeamConfigV1, x_mask: c_long, x_team: *mut TeamId, y_config: *const TeamConfigV1, y_mask: c_long, y_team: *mut TeamId) -> c_int;
    /// Collective over the team.
    fn nvshmem_team_destroy(team: TeamId);

    /// Collective: all PEs meet, all puts have arrived.
    fn nvshmem_barrier_all();
    /// The same on a stream.
    fn nvshmemx_barrier_all_on_stream(stream: StreamHandle);
    /// Of a team.
    fn nvshmem_barrier(team: TeamId) -> c_int;
    /// Of a team, on a stream.
    fn nvshmemx_barrier_on_stream(team: TeamId, stream: StreamHandle) -> c_int;
    /// Collective: all PEs meet.
    fn nvshmem_sync_all();
    /// The same on a stream.
    fn nvshmemx_sync_all_on_stream(stream: StreamHandle);
    /// Of a team.
    fn nvshmem_team_sync(team: TeamId) -> c_int;
    /// Of a team, on a stream.
    fn nvshmemx_team_sync_on_stream(team: TeamId, stream: StreamHandle) -> c_int;
    /// Waits until this PE's puts have arrived.
    fn nvshmem_quiet();
    /// The same on a stream.
    fn nvshmemx_quiet_on_stream(stream: StreamHandle);

    /// Copies to another PE.
    fn nvshmem_putmem(dst: *mut c_void, src: *const c_void, bytes: usize, pe: c_int);
    /// The same on a stream.
    fn nvshmemx_putmem_on_stream(dst: *mut c_void, src: *const c_void, bytes: usize, pe: c_int, stream: StreamHandle);
    /// Complete only after a quiet.
    fn nvshmemx_putmem_nbi_on_stream(dst: *mut c_void, src: *const c_void, bytes: usize, pe: c_int, stream: StreamHandle);
    /// Copies, then sets or adds to a signal.
    fn nvshmemx_putmem_signal_on_stream(dst: *mut c_void, src: *const c_void, bytes: usize, signal: *mut u64, value: u64, operation: c_int, pe: c_int, stream: StreamHandle);
    /// Copies from another PE.
    fn nvshmem_getmem(dst: *mut c_void, src: *const c_void, bytes: usize, pe: c_int);
    /// The same on a stream.
    fn nvshmemx_getmem_on_stream(dst: *mut c_void, src: *const c_void, bytes: usize, pe: c_int, stream: StreamHandle);
    /// Stores one value at another PE.
    fn nvshmem_uint64_p(dst: *mut u64, value: u64, pe: c_int);
    /// Loads one value of another PE.
    fn nvshmem_uint64_g(src: *const u64, pe: c_int) -> u64;
    /// Sets or adds to another PE's signal.
    fn nvshmemx_signal_op_on_stream(signal: *mut u64, value: u64, operation: c_int, pe: c_int, stream: StreamHandle);
    /// Waits for an own signal.
    fn nvshmemx_signal_wait_until_on_stream(signal: *mut u64, comparison: c_int, value: u64, stream: StreamHandle);

    /// Collective: gathers `bytes` of each PE on all.
    fn nvshmemx_fcollectmem_on_stream(team: TeamId, dst: *mut c_void, src: *const c_void, bytes: usize, stream: StreamHandle) -> c_int;
    /// Collective: copies `bytes` of the root to all.
    fn nvshmemx_broadcastmem_on_stream(team: TeamId, dst: *mut c_void, src: *const c_void, bytes: usize, root: c_int, stream: StreamHandle) -> c_int;
    /// Collective: exchanges `bytes` between each pair.
    fn nvshmemx_alltoallmem_on_stream(team: TeamId, dst: *mut c_void, src: *const c_void, bytes: usize, stream: StreamHandle) -> c_int;
    /// Collective: the sum of `count` bfloat16 over all PEs.
    fn nvshmemx_bfloat16_sum_reduce_on_stream(team: TeamId, dst: *mut c_void, src: *const c_void, count: usize, stream: StreamHandle) -> c_int;
    /// Collective: the sum of `count` binary16 over all PEs.
    fn nvshmemx_half_sum_reduce_on_stream(team: TeamId, dst: *mut c_void, src: *const c_void, count: usize, stream: StreamHandle) -> c_int;
    /// Collective: the sum of `count` binary32 over all PEs.
    fn nvshmemx_float_sum_reduce_on_stream(team: TeamId, dst: *mut f32, src: *const f32, count: usize, stream: StreamHandle) -> c_int;
    /// Collective: each PE gets the sum of its `count` bfloat16.
    fn nvshmemx_bfloat16_sum_reducescatter_on_stream(team: TeamId, dst: *mut c_void, src: *const c_void, count: usize, stream: StreamHandle) -> c_int;
    /// Collective: each PE gets the sum of its `count` binary16.
    fn nvshmemx_half_sum_reducescatter_on_stream(team: TeamId, dst: *mut c_void, src: *const c_void, count: usize, stream: StreamHandle) -> c_int;
    /// Collective: each PE gets the sum of its `count` binary32.
    fn nvshmemx_float_sum_reducescatter_on_stream(team: TeamId, dst: *mut f32, src: *const f32, count: usize, stream: StreamHandle) -> c_int;
}
