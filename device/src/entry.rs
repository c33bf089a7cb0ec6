//! The form of an entry point.

/// Declares a kernel: an exported `ptx-kernel` function of one parameter struct, with the launch
/// bounds (most threads per block, fewest resident blocks, alignment of the parameters if more than the struct's) that
/// device-builder writes into the PTX.
///
/// ```ignore
/// kernel! {
///     /// What it does, shapes, safety.
///     #[launch_bounds(256, 1)]
///     pub fn scale_bf16(p: Scale) { … }
/// }
/// ```
macro_rules! kernel {
    (
        $(#[doc = $doc:literal])*
        #[launch_bounds($max_threads:literal, $min_blocks:literal $(, align = $align:literal)?)]
        pub fn $name:ident($params:ident: $ty:ty) $body:block
    ) => {
        $(#[doc = $doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name($params: $ty) $body

        const _: () = {
            #[unsafe(export_name = concat!("launch_bounds$", stringify!($name), "$", $max_threads, "$", $min_blocks $(, "$", $align)?))]
            static LAUNCH_BOUNDS: u8 = 0;
        };
    };
}

/// The generic address of a kernel's parameter struct, for what reads its bytes where they lie: tensor maps.
///
/// `mov` of a parameter's name, then `cvta.param` (PTX ISA 7.7): taken in Rust, the address would be that of a copy in
/// local memory.
#[cfg(cuda_arch = "sm_90a")]
macro_rules! param_address {
    ($kernel:ident) => {{
        let address: u64;
        // SAFETY: the address of the one parameter of the kernel that this stands in.
        unsafe {
            core::arch::asm!(
                concat!("mov.b64 {0}, ", stringify!($kernel), "_param_0;"),
                "cvta.param.u64 {0}, {0};",
                out(reg64) address,
                options(pure, nomem, nostack)
            );
        }
        address
    }};
}
