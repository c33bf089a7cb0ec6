//! The form of an entry point.

/// Declares a kernel: an exported `ptx-kernel` function of one parameter struct, with the launch
/// bounds (most threads per block, fewest resident blocks) that device-builder writes into the PTX.
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
        #[launch_bounds($max_threads:literal, $min_blocks:literal)]
        pub fn $name:ident($params:ident: $ty:ty) $body:block
    ) => {
        $(#[doc = $doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name($params: $ty) $body

        const _: () = {
            #[unsafe(export_name = concat!("launch_bounds$", stringify!($name), "$", $max_threads, "$", $min_blocks))]
            static LAUNCH_BOUNDS: u8 = 0;
        };
    };
}
