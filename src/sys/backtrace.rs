//! Leaves out the code that would list the callers of a panic.
//!
//! The shipped agent has no tables for unwinding (`xtask/src/agent.ld`) and no symbols: a backtrace could never name
//! a function, and the code that would try is a twentieth of the agent. std asks the unwinder for each frame, through
//! functions of the [Itanium C++ ABI](https://itanium-cxx-abi.github.io/cxx-abi/abi-eh.html) and GCC's additions to it.
//! With an unwinder that has no frame, the compiler drops the rest. Tests and the builder have tables, and keep theirs.
//!
//! These are all functions of LLVM's libunwind that std refers to: a linker takes a member of an archive only for a
//! symbol that nothing else defines.
#![allow(unsafe_code)] // names of the ABI

use std::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK`: the callback was called for each frame there is.
const END_OF_STACK: c_int = 5;

/// Calls `_callback` for no frame.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_callback: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

// What follows, std asks for in the middle of unwinding alone, which a program that aborts on a panic never does.

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume(_exception: *mut c_void) -> ! {
    std::process::abort()
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetLanguageSpecificData(_context: *const c_void) -> *const c_void {
    std::ptr::null()
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_SetGR(_context: *mut c_void, _register: c_int, _value: usize) {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_SetIP(_context: *mut c_void, _address: usize) {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetIPInfo(_context: *const c_void, _before: *mut c_int) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetIP(_context: *const c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetRegionStart(_context: *const c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetTextRelBase(_context: *const c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetDataRelBase(_context: *const c_void) -> usize {
    0
}
