//! Memory that outlives a process: a file without a name (`memfd_create(2)`) that whoever comes next
//! holds by its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicU64;

/// What nobody may do to the file any more: change its length, which would turn a look at it into a
/// crash.
const SEALS: libc::c_int = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;

/// Since Linux 6.3, where it may be demanded.
const MFD_NOEXEC_SEAL: libc::c_uint = 0x0008;

/// Words that all processes that hold [`Self::descriptor`] share. Mapped until this process ends.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    words: &'static [AtomicU64],
}

impl SharedMemory {
    /// So many words, all 0. They take room once they are used.
    ///
    /// # Errors
    ///
    /// When the process is out of memory or descriptors.
    pub fn new(words: usize) -> io::Result<Self> {
        let file = make()?;
        let len = words.checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
        file.set_len(len as u64)?;
        // SAFETY: takes numbers only.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses where, so that nothing of ours is replaced.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is `len` bytes long, begins at a page, is never unmapped, and the file
        // cannot shrink below it (it is sealed). Every bit pattern is a value, and whoever else writes
        // to it does so by aligned words, or tears what this process reads as atomics all the same.
        let words = unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), words) };
        Ok(Self { file, words })
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    /// What the next process gets.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The memory of a process before this one, to be read from its start as a file is: nothing that happens
/// to it later reaches this process.
#[must_use]
pub fn left(descriptor: OwnedFd) -> Left {
    Left { file: File::from(descriptor), at: 0 }
}

/// What [`left`] gives.
#[derive(Debug)]
pub struct Left {
    file: File,
    /// Of its own, because all who hold the file share its position.
    at: u64,
}

impl io::Read for Left {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(room, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn make() -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let make = |flags| {
        // SAFETY: the name ends with a zero and lives for ever.
        let fd = unsafe { libc::memfd_create(c"ovmesh-flows".as_ptr(), flags) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
    };
    let fd = make(flags | MFD_NOEXEC_SEAL).or_else(|_| make(flags))?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_was_written_is_read_by_who_gets_the_descriptor_and_nobody_shortens_it() {
        let memory = SharedMemory::new(1000).unwrap();
        assert!(memory.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        memory.words()[999].store(0x0123_4567_89ab_cdef, Ordering::Relaxed);

        let copy = memory.descriptor().try_clone_to_owned().unwrap();
        assert!(File::from(copy.try_clone().unwrap()).set_len(8).is_err());
        let mut bytes = Vec::new();
        left(copy).read_to_end(&mut bytes).unwrap();

        assert_eq!(bytes.len(), 8000);
        assert_eq!(bytes[7992..], 0x0123_4567_89ab_cdef_u64.to_ne_bytes());
    }
}
