//! What the kernel must refuse a sandbox: every attempt of `probe.c`, as the sandbox's root and as its user, and the errno that each
//! ends with. A call that no sandbox has (`ENOSYS`) and one that only the host's root may make (`EPERM`) are told apart on purpose:
//! programs fall back on the first.

use std::collections::{BTreeMap, BTreeSet};

use atoll_api::sandbox::SandboxSpec;

use crate::Rule;
use crate::host::{Host, IMAGE, run};
use crate::isolation::started;
use crate::world::spec;

pub const RULES: &[Rule] = &[
    ("no_file_system_can_be_mounted", |host| refused(host, MOUNTS)),
    ("no_device_node_can_be_made_or_opened", |host| refused(host, DEVICES)),
    ("the_kernel_cannot_be_changed", |host| refused(host, KERNEL)),
    ("no_namespace_can_be_made_or_entered", |host| refused(host, NAMESPACES)),
    ("the_daemon_can_be_neither_read_nor_traced", |host| refused(host, DAEMON)),
    ("what_is_the_hosts_roots_alone_is_not_gained", |host| refused(host, PRIVILEGES)),
    ("no_terminal_takes_pushed_characters", |host| refused(host, TERMINALS)),
    ("only_ordinary_sockets_can_be_opened", |host| refused(host, SOCKETS)),
    ("no_way_leads_around_the_filters", |host| refused(host, DETOURS)),
    ("every_attempt_is_judged_and_none_succeeds_for_the_user", user_and_whole),
];

/// Attempts, separated by blanks, and what answers each of them in a sandbox's root's hands.
type Answers = &'static [(&'static str, &'static [&'static str])];

const EPERM: &[&str] = &["EPERM"];
const ENOSYS: &[&str] = &["ENOSYS"];
const ENOENT: &[&str] = &["ENOENT"];

const MOUNTS: Answers = &[
    (
        "mount_tmpfs mount_proc mount_sysfs mount_devpts mount_devtmpfs mount_mqueue mount_ramfs mount_cgroup mount_cgroup2 \
         mount_debugfs mount_tracefs mount_securityfs mount_bpf mount_binfmt_misc mount_configfs mount_hugetlbfs mount_ext4 mount_xfs \
         mount_squashfs mount_overlay mount_fuse mount_nfs mount_cifs mount_efivarfs mount_pstore mount_nsfs mount_bind mount_move \
         mount_shared remount_proc_sys remount_sys remount_root_with_devices umount_mask umount_proc umount_root pivot new_fsopen \
         new_fsconfig new_fsmount new_fspick new_open_tree new_open_tree_plain new_move_mount new_mount_setattr",
        EPERM,
    ),
    ("new_open_tree_attr new_statmount new_listmount", ENOSYS),
];
const DEVICES: Answers = &[
    (
        "mknod_disk mknod_virtual_disk mknod_disk_in_shm mknod_memory mknod_kernel_log mknod_fuse mknod_at",
        EPERM,
    ),
    // An overlay's mark of a deleted file would be one, made by hand.
    ("mknod_whiteout", EPERM),
    ("mknod_disk_in_dev", &["EROFS"]),
    (
        "open_dev_mem open_dev_kmsg open_dev_fuse open_dev_kvm open_dev_tun open_dev_loop open_dev_console open_dev_vsock \
         open_dev_port open_dev_userfaultfd",
        ENOENT,
    ),
    ("open_dev_tty", &["ENXIO"]),
];
const KERNEL: Answers = &[
    (
        "load_module load_module_file unload_module kexec kexec_file restart swap_on swap_off clock_set time_of_day_set clock_adjust \
         time_adjust host_name domain_name kernel_log kernel_log_size accounting quota quota_fd hang_up load_program perf user_faults \
         user_faults_unprivileged ring ring_enter watch_file_system dcookie add_key_ request_key_ key_ring pages_moved pages_bound \
         compare landing_in_zero_page",
        EPERM,
    ),
    ("secret_memory ring_of_old", ENOSYS),
    #[cfg(target_arch = "x86_64")]
    ("ports port", EPERM),
];
const NAMESPACES: Answers = &[
    (
        "unshare_user unshare_mount unshare_pid unshare_net unshare_ipc unshare_uts unshare_cgroup unshare_time clone_user \
         clone_mount clone_pid clone_net clone_ipc clone_uts clone_cgroup clone_user_with_more clone_user_with_high_bits \
         mount_in_own_user_namespace enter_mounts_of_init enter_own_user_namespace enter_by_pidfd parent_of_user_namespace \
         handle_made handle_opened",
        EPERM,
    ),
    // Its flags lie in memory, where no filter can look; the C library takes clone instead.
    ("clone3_user", ENOSYS),
    // It stays where it is.
    ("chroot_escape", ENOENT),
];
const DAEMON: Answers = &[
    ("trace_init seize_init read_init write_init take_fd_of_init", EPERM),
    ("open_memory_of_init open_environment_of_init open_fd_of_init root_of_init", &["EACCES"]),
    // The sandbox's own root may make its daemon an easier prey, and its sandbox end or fall silent: that is seen outside.
    ("limits_of_init badness_of_init", &["OK"]),
    ("advise_init release_init", &["EPERM", "EACCES", "EINVAL"]),
];
const PRIVILEGES: Answers = &[
    ("nice_up less_badness", &["EACCES"]),
    (
        "real_time real_time_io more_files capability_gained capability_inherited capability_ambient capability_of_file \
         trusted_attribute immutable persona_of_old_unix persona_that_executes_data",
        EPERM,
    ),
    ("id_of_nobody own_by_nobody", &["EINVAL"]),
];
const TERMINALS: Answers = &[
    ("terminal_pushed terminal_pushed_high_bits console_pasted console_taken", EPERM),
    // The kernel lacks this one, and loads none for us.
    ("discipline", &["EPERM", "EINVAL"]),
];
const SOCKETS: Answers = &[(
    "socket_packet socket_packet_cooked socket_raw socket_raw_header socket_raw6 socket_vsock socket_alg socket_xdp \
         socket_bluetooth socket_can socket_key socket_tipc socket_rds socket_smc socket_x25 socket_ax25 socket_appletalk socket_llc \
         socket_nfc socket_qipcrtr socket_rxrpc socket_kcm socket_pppox socket_mctp socket_family_high_bits socket_sctp \
         socket_sctp_seq socket_dccp socket_l2tp socket_udplite socket_netfilter socket_xfrm socket_generic socket_crypto \
         socket_connector socket_rdma socket_scsi pair_of_vsock pair_of_tipc pair_of_internet socket_mark socket_transparent socket_filter_table socket_buffer_forced \
         device_renamed address_changed neighbour_forged",
    EPERM,
)];
const DETOURS: Answers = &[
    ("unknown_call negative_call", ENOSYS),
    // Another instruction set's numbers: the whole process ends.
    #[cfg(target_arch = "x86_64")]
    ("int80_getpid int80_unshare", &["SIGSYS"]),
    #[cfg(target_arch = "x86_64")]
    (
        "x32_mount x32_unshare x32_getpid obsolete_sysctl obsolete_uselib obsolete_create_module obsolete_get_kernel_syms \
         obsolete_query_module obsolete_nfsservctl obsolete_getpmsg obsolete_afs obsolete_security obsolete_epoll_ctl \
         obsolete_vserver obsolete_sysfs obsolete_ustat segment_made",
        ENOSYS,
    ),
];
const ALL: &[Answers] =
    &[MOUNTS, DEVICES, KERNEL, NAMESPACES, DAEMON, PRIVILEGES, TERMINALS, SOCKETS, DETOURS];

fn refused(host: &Host, answers: Answers) {
    let expected: BTreeMap<&str, &[&str]> = answers
        .iter()
        .flat_map(|(names, answer)| names.split(' ').map(move |name| (name, *answer)))
        .collect();
    let names = expected.keys().copied().collect::<Vec<_>>().join(" ");
    let said = host.tokio.block_on(async {
        let world = started(host, spec(IMAGE)).await;
        run(&world.runner, 1, &format!("cd /; probe {names}")).await.output
    });
    let said = parse(&said);

    let wrong: Vec<String> = expected
        .iter()
        .filter(|(name, answers)| !said.get(**name).is_some_and(|said| answers.contains(&said.as_str())))
        .map(|(name, answers)| format!("{name}: {:?}, and not {answers:?}", said.get(*name)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn user_and_whole(host: &Host) {
    let judged: BTreeSet<&str> =
        ALL.iter().copied().flatten().flat_map(|(names, _)| names.split(' ')).collect();
    let said = host.tokio.block_on(async {
        let world = started(host, SandboxSpec { user: "user".into(), ..spec(IMAGE) }).await;
        run(&world.runner, 1, "cd /; id -u; probe").await.output
    });
    let rest = said.strip_prefix("1000\n").unwrap_or_else(|| panic!("{said}"));
    let said = parse(rest);

    assert_eq!(said.keys().map(String::as_str).collect::<BTreeSet<_>>(), judged);
    let done: Vec<_> = said.iter().filter(|(_, answer)| *answer == "OK" || *answer == "nothing").collect();
    assert!(done.is_empty(), "{done:?}");
}

fn parse(said: &str) -> BTreeMap<String, String> {
    let lines = said.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(name, answer)| (name.to_owned(), answer.to_owned())).collect()
}
