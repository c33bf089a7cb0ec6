//! Structures and constants of NVSHMEM's host interface, as its headers of 3.4 and 3.8 have them.
//!
//! A structure's version is `(V << 16) + size`; these are all V = 1.

use std::ffi::{c_char, c_int, c_void};

/// `nvshmemx_uniqueid_t`: what one PE makes and all others are told, so that they find each other.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UniqueIdV1 {
    /// [`version`] of this structure.
    pub version: c_int,
    /// Addresses, opaque.
    pub internal: [c_char; 124],
}

/// `nvshmemx_uniqueid_args_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UniqueIdArgsV1 {
    /// [`version`] of this structure.
    pub version: c_int,
    /// The id; it has to outlive the initialisation.
    pub id: *mut UniqueIdV1,
    /// This PE.
    pub rank: c_int,
    /// Number of PEs.
    pub ranks: c_int,
}

/// `nvshmemx_init_args_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct InitArgsV1 {
    /// [`version`] of this structure.
    pub version: c_int,
    /// For [`INIT_WITH_UNIQUEID`].
    pub uid_args: UniqueIdArgsV1,
    /// Zero.
    pub content: [c_char; 96],
}

/// `nvshmemx_init_attr_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct InitAttrV1 {
    /// [`version`] of this structure.
    pub version: c_int,
    /// For [`INIT_WITH_MPI_COMM`]: address of an `MPI_Comm`.
    pub mpi_comm: *mut c_void,
    /// The rest.
    pub args: InitArgsV1,
}

/// `nvshmem_team_config_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TeamConfigV1 {
    /// [`version`] of this structure.
    pub version: c_int,
    /// Contexts that the team will have; -1 leaves it open.
    pub num_contexts: c_int,
    /// Zero.
    pub padding: [c_char; 56],
}

const _: () = {
    assert!(size_of::<UniqueIdV1>() == 128);
    assert!(size_of::<UniqueIdArgsV1>() == 24);
    assert!(size_of::<InitArgsV1>() == 128);
    assert!(size_of::<InitAttrV1>() == 144);
    assert!(size_of::<TeamConfigV1>() == 64);
};

/// The version field of a structure of version 1.
pub const fn version<T>() -> c_int {
    (1 << 16) + size_of::<T>() as c_int
}

/// `nvshmem_team_t`.
pub type TeamId = i32;
/// `cudaStream_t`, which is a `CUstream`.
pub type StreamHandle = *mut c_void;
/// `CUmodule`.
pub type ModuleHandle = *mut c_void;

/// Initialise over an MPI communicator.
pub const INIT_WITH_MPI_COMM: u32 = 1 << 1;
/// Initialise over a unique id.
pub const INIT_WITH_UNIQUEID: u32 = 1 << 3;

/// `nvshmemx_init_status`: bootstrapped, but without a device.
pub const STATUS_IS_BOOTSTRAPPED: c_int = 1;
/// `nvshmemx_init_status`: initialised, with a device.
pub const STATUS_IS_INITIALIZED: c_int = 2;

/// All PEs.
pub const TEAM_WORLD: TeamId = 0;
/// The PEs that this one shares memory with.
pub const TEAM_SHARED: TeamId = 1;
/// The PEs of this node.
pub const TEAM_NODE: TeamId = 2;
/// No team: what PEs outside of a new one get.
pub const TEAM_INVALID: TeamId = -1;

/// Comparison of waits: equal.
pub const CMP_EQ: c_int = 0;
/// Comparison of waits: not equal.
pub const CMP_NE: c_int = 1;
/// Comparison of waits: greater.
pub const CMP_GT: c_int = 2;
/// Comparison of waits: less or equal.
pub const CMP_LE: c_int = 3;
/// Comparison of waits: less.
pub const CMP_LT: c_int = 4;
/// Comparison of waits: greater or equal.
pub const CMP_GE: c_int = 5;

/// Signal operation: replace.
pub const SIGNAL_SET: c_int = 9;
/// Signal operation: add.
pub const SIGNAL_ADD: c_int = 10;
