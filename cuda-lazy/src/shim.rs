//! The macros behind the generated table: one forwarding function per driver function.

use std::ffi::CStr;

/// A C string from a literal that ends in NUL; anything else does not compile.
pub(crate) const fn c_name(with_nul: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(with_nul.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a driver function's name ends in NUL and has no other"),
    }
}

/// The body of a forwarding function: look the driver's function up (once), call it, clamp the result.
macro_rules! forward {
    ($name:ident($($arg:ident: $type:ty),*)) => {{
        static SLOT: $crate::library::Slot = $crate::library::Slot::new();
        match SLOT.get(const { $crate::shim::c_name(concat!(stringify!($name), "\0")) }) {
            Ok(address) => {
                type Function = unsafe extern "C" fn($($type),*) -> u32;
                // SAFETY: the address is the driver's function of this name, whose signature this is, except
                // that its result is read as the integer it is in C.
                let call: Function = unsafe { std::mem::transmute(address.as_ptr()) };
                // SAFETY: our caller's promise about its arguments is the driver's requirement.
                $crate::result::result(unsafe { call($($arg),*) })
            }
            Err(result) => result,
        }
    }};
}

/// Defines the symbols that cust_raw declares. A signature that differs from cust_raw's does not compile.
macro_rules! entry_points {
    ($(fn $name:ident($($arg:ident: $type:ty),*);)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $type),*) -> CUresult {
                $crate::shim::forward!($name($($arg: $type),*))
            }
            const _: unsafe extern "C" fn($($type),*) -> CUresult = cust_raw::$name;
        )*

        /// The names of the driver functions that this crate defines, apart from `cuGetErrorString` and
        /// `cuGetErrorName`, which it can also answer without a driver.
        pub const ENTRY_POINTS: &[&str] = &[$(stringify!($name)),*];
    };
}

/// Defines the lookup from an integer to cust_raw's result enum.
macro_rules! known_results {
    ($($name:ident,)*) => {
        pub(crate) fn known_result(code: u32) -> Option<(CUresult, &'static std::ffi::CStr)> {
            $(
                if code == CUresult::$name as u32 {
                    let name = const { $crate::shim::c_name(concat!(stringify!($name), "\0")) };
                    return Some((CUresult::$name, name));
                }
            )*
            None
        }
    };
}

pub(crate) use {entry_points, forward, known_results};
