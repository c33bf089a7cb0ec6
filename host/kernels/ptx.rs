//! The embedded PTX, and the compile-time proof that typed launches and PTX belong together.

use std::mem::offset_of;

use super::{TensorMap, attention, gemm, nvrar, params, pointwise, prefill, sampling};

/// One PTX file of this crate's own kernels; any driver of CUDA 11.4 (`sm_80`) or 12.4 (`sm_90a`) takes it.
#[derive(Debug, Clone, Copy)]
pub struct Ptx {
    /// `sm_80` runs on compute capability 8.0 and everything later, `sm_90a` on 9.0 alone.
    pub arch: &'static str,
    /// The text.
    pub text: &'static str,
    /// The kernels in it.
    pub entries: &'static [Entry],
}

/// What a PTX file declares about a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// The size of its parameter struct.
    pub param_bytes: usize,
    /// The most threads that a block may have.
    pub max_threads: u32,
}

/// Digits of the hash of the kernels' sources in a release.
const HASH_DIGITS: usize = 12;

/// The version and what the kernels were made from: ranks whose kernels differ do not understand each other, and what
/// was measured of some says nothing of others.
pub(crate) fn release() -> String {
    let kernels = PTX[0].sources();
    format!("{} with kernels {}", env!("CARGO_PKG_VERSION"), kernels.get(..HASH_DIGITS).unwrap_or(kernels))
}

impl Ptx {
    /// The best file for a compute capability such as (9, 0); none below 8.0.
    pub const fn for_capability(major: u32, minor: u32) -> Option<&'static Ptx> {
        let mut i = 0;
        while i < PTX.len() {
            if PTX[i].runs_on(major, minor) {
                return Some(&PTX[i]);
            }
            i += 1;
        }
        None
    }

    /// Whether a device of this compute capability can run it.
    pub const fn runs_on(&self, major: u32, minor: u32) -> bool {
        match self.arch.as_bytes() {
            b"sm_90a" => major == 9 && minor == 0,
            _ => major >= 8,
        }
    }

    /// Whether the kernels take part in programmatic dependent launch: they wait for the kernel ahead of them by
    /// themselves, so they may be launched with that attribute. Without it they may not: an sm_80 kernel would
    /// start before its predecessor's writes are visible.
    pub const fn is_programmatic(&self) -> bool {
        matches!(self.arch.as_bytes(), b"sm_90a")
    }

    /// Whether blocks of a cluster share work; elsewhere launches have none ([`Launch::cluster`](super::Launch)).
    pub const fn has_clusters(&self) -> bool {
        matches!(self.arch.as_bytes(), b"sm_90a")
    }

    /// Whether the file has the products over `wgmma`, which are for Hopper alone.
    pub const fn has_wgmma(&self) -> bool {
        matches!(self.arch.as_bytes(), b"sm_90a")
    }

    /// The hash of the sources that it was made from, in hexadecimal digits.
    pub fn sources(&self) -> &'static str {
        let line = self.text.lines().take(8).find_map(|line| line.strip_prefix("// sources: sha256 "));
        line.unwrap_or("unknown")
    }

    /// The text with definitions of functions that it leaves open, as names and PTX, in place of their declarations.
    ///
    /// # Errors
    /// The first function that it does not declare.
    pub fn text_with<'a>(&self, definitions: &[(&'a str, &str)]) -> Result<String, &'a str> {
        let mut text = self.text.to_owned();
        for (function, definition) in definitions {
            let begin = text.find(&format!(".extern .func {function}\n")).ok_or(*function)?;
            let end = text[begin..].find(";\n").map_or(text.len(), |length| begin + length + 2);
            text.replace_range(begin..end, definition);
        }
        Ok(text)
    }

    /// What the file declares about a kernel.
    pub fn entry(&self, name: &str) -> Option<&'static Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// The functions of NVSHMEM that the files of [`NVSHMEM_PTX`] leave open.
pub const NVSHMEM_FUNCTIONS: [&str; 2] = ["nvshmem_putmem_nbi", "nvshmemx_putmem_nbi_warp"];

/// The kernels that share a parameter struct.
struct Family {
    names: &'static [&'static str],
    param_bytes: usize,
}

macro_rules! families {
    ($($params:ident: $addresses:literal addresses + $words:literal words => $names:expr,)*) => {
        /// Every kernel that a typed launch can name, but those that call NVSHMEM.
        const FAMILIES: &[Family] =
            &[$(Family { names: $names, param_bytes: size_of::<params::$params>() }),*];
        $(
            const _: () = assert!(
                size_of::<params::$params>() == 8 * $addresses + 4 * $words,
                concat!("device/src/params.rs: ", stringify!($params), " has padding or other fields than here")
            );
            // SAFETY: `repr(C)` of 8-byte addresses and 4-byte numbers, without padding as just asserted.
            unsafe impl bytemuck::NoUninit for params::$params {}
        )*
    };
}

families! {
    Embedding: 3 addresses + 2 words => &pointwise::EMBEDDING,
    Add: 2 addresses + 2 words => &pointwise::ADD,
    RmsNorm: 5 addresses + 2 words => &pointwise::RMSNORM,
    RopeKvWrite: 7 addresses + 6 words => &attention::ROPE_KV_WRITE,
    Argmax: 5 addresses + 2 words => &sampling::ARGMAX,
    Sample: 7 addresses + 2 words => &sampling::SAMPLE,
    AdvancePositions: 2 addresses + 2 words => &sampling::ADVANCE_POSITIONS,
    Gemm: 4 addresses + 6 words => gemm::NAMES.as_flattened(),
    AttnDecode: 11 addresses + 8 words => &attention::DECODE,
    AttnPrefill: 8 addresses + 8 words => &prefill::PREFILL,
    Collective: 13 addresses + 12 words => nvrar::ALL_REDUCE.as_flattened(),
    Gather: 13 addresses + 46 words => nvrar::ALL_GATHER,
}

/// The kernels that only the file for sm_90a has.
const SM_90A_FAMILIES: &[Family] = &[
    Family { names: gemm::STREAM_NAMES.as_flattened(), param_bytes: size_of::<params::Gemm>() },
    Family { names: gemm::PREFILL_NAMES.as_flattened(), param_bytes: size_of::<params::PrefillGemm>() },
];
const _: () = assert!(
    size_of::<params::PrefillGemm>() == size_of::<params::Gemm>() + 2 * 4 + 2 * TensorMap::BYTES
        && offset_of!(params::PrefillGemm, a_map).is_multiple_of(64),
    "device/src/params.rs: PrefillGemm has padding, other fields than here or maps that are not 64-byte aligned"
);
// SAFETY: `repr(C)` of plain numbers, without padding as just asserted.
unsafe impl bytemuck::NoUninit for params::PrefillGemm {}

/// The kernels that call NVSHMEM.
const NVSHMEM_FAMILIES: &[Family] = &[
    Family { names: &nvrar::ALL_REDUCE_PUT, param_bytes: size_of::<params::Collective>() },
    Family { names: &[nvrar::ALL_GATHER_PUT], param_bytes: size_of::<params::Gather>() },
];

/// Bytes of the struct behind the typed launch of a kernel, 0 if there is none.
const fn typed_param_bytes(families: &[&[Family]], name: &str) -> usize {
    let mut f = 0;
    while f < families.len() {
        let bytes = param_bytes_in(families[f], name);
        if bytes != 0 {
            return bytes;
        }
        f += 1;
    }
    0
}

const fn param_bytes_in(families: &[Family], name: &str) -> usize {
    let mut f = 0;
    while f < families.len() {
        let mut n = 0;
        while n < families[f].names.len() {
            if equal(families[f].names[n].as_bytes(), name.as_bytes()) {
                return families[f].param_bytes;
            }
            n += 1;
        }
        f += 1;
    }
    0
}

/// How many kernels typed launches can name.
const fn typed_count(families: &[&[Family]]) -> usize {
    let (mut count, mut i) = (0, 0);
    while i < families.len() {
        let mut f = 0;
        while f < families[i].len() {
            count += families[i][f].names.len();
            f += 1;
        }
        i += 1;
    }
    count
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

// `PTX`, and one assertion per kernel and file: see build.rs.
include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_gpu_gets_the_best_file() {
        let arch = |major, minor| Ptx::for_capability(major, minor).map(|ptx| ptx.arch);
        assert_eq!(arch(7, 5), None);
        assert_eq!([arch(8, 0), arch(8, 9), arch(10, 0), arch(12, 0)], [Some("sm_80"); 4]);
        assert_eq!(arch(9, 0), Some("sm_90a"));
    }

    #[test]
    fn a_file_is_what_its_name_says() {
        for ptx in &PTX {
            assert!(ptx.text.contains(&format!("\n.target {}\n", ptx.arch)), "{}", ptx.arch);
            assert_eq!(ptx.text.contains("griddepcontrol.wait"), ptx.is_programmatic(), "{}", ptx.arch);
            assert_eq!(ptx.text.contains("barrier.cluster.arrive"), ptx.has_clusters(), "{}", ptx.arch);
            assert_eq!(ptx.text.contains("wgmma.mma_async"), ptx.has_wgmma(), "{}", ptx.arch);
            assert_eq!(
                ptx.entry("argmax_f32").map(|entry| entry.param_bytes),
                Some(size_of::<params::Argmax>())
            );
            assert_eq!(ptx.entry("argmax"), None);
            let hash = ptx.sources();
            assert!(hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()), "{hash}");
        }
    }

    #[test]
    fn definitions_stand_in_for_declarations() {
        for ptx in &NVSHMEM_PTX {
            let [first, second] = NVSHMEM_FUNCTIONS;
            let text = ptx.text_with(&[(first, "// one\n"), (second, "// two\n")]).unwrap();
            assert!(!text.contains(".extern .func"), "{}", ptx.arch);
            let rest = text.replace("// one\n// two\n", "");
            let (kept, lost) = (rest.lines().count(), 2 * 8);
            assert_eq!(kept + lost, ptx.text.lines().count(), "{}", ptx.arch);
            assert_eq!(ptx.text_with(&[(first, ""), ("nvshmem_put", "")]), Err("nvshmem_put"));
        }
        assert_eq!(PTX[0].text_with(&[("f", "")]), Err("f"));
    }

    #[test]
    fn names_are_compared_whole() {
        let bytes = |name| typed_param_bytes(&[FAMILIES], name);
        assert!(bytes("rmsnorm_bf16") > 0);
        assert_eq!((bytes("rmsnorm_bf1"), bytes("rmsnorm_bf166"), bytes("allgather_put")), (0, 0, 0));
    }
}
