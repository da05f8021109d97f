//! Gets a thread out of the system call that it waits in.
//!
//! A hallway waits for packets in the read itself: to wait in one call and to read in the next would
//! cost every lone packet a call more. What ends such a wait is a signal to that very thread; its
//! handler does nothing, but the call returns.

use std::io;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::Once;
use std::thread::JoinHandle;

/// Of the real-time signals, which mean nothing by themselves; the lower ones are the C library's.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 5
}

extern "C" fn nothing(_: libc::c_int) {}

/// Makes the system call that `thread` waits in return with [`io::ErrorKind::Interrupted`].
///
/// A thread that has looked around and not begun to wait yet does not notice: call this until the thread
/// has done what it should.
pub fn interrupt<T>(thread: &JoinHandle<T>) {
    static HANDLED: Once = Once::new();
    HANDLED.call_once(handle);
    // SAFETY: the handle is not joined yet, so that the thread's id is valid even if the thread has ended;
    // the signal's handler was installed before, so that it ends no process.
    let result = unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
    debug_assert!(result == 0 || result == libc::ESRCH, "{}", io::Error::from_raw_os_error(result));
}

fn handle() {
    // SAFETY: `sigaction` is a C struct of integers and pointers, for which all zeros is a value: no
    // flags, so that calls are not begun again by themselves, and no further signals blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: `action` lives until the call returns, nobody wants to know the action before; the handler
    // does nothing, which is safe wherever a thread may be.
    let result = unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) };
    debug_assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_interruption_ends_a_wait_on_a_silent_socket_and_nothing_else() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (is_stopped, waits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let thread = std::thread::spawn({
            let (is_stopped, waits) = (Arc::clone(&is_stopped), Arc::clone(&waits));
            move || {
                while !is_stopped.load(Ordering::Acquire) {
                    let error = silent.recv(&mut [0]).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
                    waits.fetch_add(1, Ordering::Release);
                }
            }
        });
        let until = |is_done: &dyn Fn() -> bool| {
            while !is_done() {
                interrupt(&thread);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        };

        until(&|| waits.load(Ordering::Acquire) > 0);
        assert!(!thread.is_finished());
        is_stopped.store(true, Ordering::Release);
        until(&|| thread.is_finished());
        // Also after the end: harmless.
        interrupt(&thread);
        thread.join().unwrap();
    }
}
