//! What root inside a sandbox may do, beyond an ordinary user: a short list, and all of it within its own user namespace.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities};

/// Of Docker's own defaults these are left out: MKNOD (no device nodes), NET_RAW (no forged packets; ping works through
/// `ping_group_range`) and SETFCAP.
pub const KEPT: CapabilitySet = CapabilitySet::CHOWN // Package managers unpack files of any owner into any folder …
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID) // … and keep their modes.
    .union(CapabilitySet::SETUID) // The daemon starts processes as the sandbox's user and ends them; su, sudo …
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETPCAP) // Only to give capabilities up.
    .union(CapabilitySet::NET_BIND_SERVICE) // People run web servers on port 80.
    .union(CapabilitySet::SYS_CHROOT) // apt and sshd confine themselves with chroot.
    .union(CapabilitySet::AUDIT_WRITE); // sudo and su fail where they may not log.

/// No exec gives more than [`KEPT`] from here on; the process itself keeps all for now.
pub fn bound() -> io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if KEPT.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The process gives up all but [`KEPT`].
pub fn shed() -> io::Result<()> {
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
