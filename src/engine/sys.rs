//! System calls that std does not have, each behind a safe function.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_int, c_void, socklen_t};

/// A connected socket on its way between an accept, a shard and a driver. Whoever holds it closes it; dropping it does not, because in the simulated
/// kernel the number means nothing to the operating system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a socket that nobody takes is leaked"]
pub struct Socket(pub RawFd);

impl From<OwnedFd> for Socket {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor.into_raw_fd())
    }
}

impl Socket {
    /// The descriptor, to be passed on while whoever holds the socket keeps it open.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the holder of a `Socket` holds it open; of one that it has closed meanwhile the number is EBADF, or another descriptor of this process.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }

    /// Closes the descriptor.
    pub fn close(self) {
        // SAFETY: closes a descriptor number; the holder of `Socket` owns it, and a wrong number is EBADF.
        unsafe { libc::close(self.0) };
    }

    /// Makes the following close send RST and throw unsent bytes away.
    pub fn reset_on_close(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let _ = set_option(self.0, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    }

    /// Says that nothing more will be sent. The direct call: `IORING_OP_SHUTDOWN` would start a kernel worker thread.
    pub fn shut_write(self) {
        // SAFETY: acts on a descriptor number that the holder owns; errors (not connected any more) do not matter.
        unsafe { libc::shutdown(self.0, libc::SHUT_WR) };
    }

    /// The peer's address, while connected; of a client who came to an IPv6 socket over IPv4, the IPv4 one (RFC 4291 section 2.5.5.2).
    pub fn peer_addr(self) -> Option<SocketAddr> {
        let address = address_of(|address, len| {
            // SAFETY: `address` points to `*len` writable bytes.
            unsafe { libc::getpeername(self.0, address, len) }
        })
        .ok()?;
        Some(match address.ip().to_canonical() {
            IpAddr::V4(v4) => SocketAddrV4::new(v4, address.port()).into(),
            IpAddr::V6(_) => address,
        })
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_option<T>(fd: RawFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a live `T` and its size is passed along; the kernel only reads it.
    check(unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast::<c_void>(), size_of::<T>() as socklen_t) })?;
    Ok(())
}

fn address_of(call: impl FnOnce(*mut libc::sockaddr, *mut socklen_t) -> c_int) -> io::Result<SocketAddr> {
    // SAFETY: all-zero bytes are a valid sockaddr_storage (family AF_UNSPEC).
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let mut len = size_of::<libc::sockaddr_storage>() as socklen_t;
    check(call(std::ptr::from_mut(&mut storage).cast(), &mut len))?;
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds a sockaddr_in, which is smaller than the storage.
            let v4 = unsafe { &*std::ptr::from_ref(&storage).cast::<libc::sockaddr_in>() };
            Ok(SocketAddrV4::new(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the storage holds a sockaddr_in6, which is smaller than the storage.
            let v6 = unsafe { &*std::ptr::from_ref(&storage).cast::<libc::sockaddr_in6>() };
            Ok(SocketAddrV6::new(Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id)
                .into())
        }
        family => Err(io::Error::other(format!("socket address of family {family}"))),
    }
}

/// How a listener's accepted sockets behave; Linux copies these options from the listener, so that an accept costs no further calls.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Clients that may wait in the kernel.
    pub backlog: u32,
    /// TCP_NOTSENT_LOWAT (tcp(7)): unsent bytes that the kernel holds for one connection.
    pub notsent_bytes: u32,
    /// TCP_DEFER_ACCEPT (tcp(7)): how long a client that says nothing may be kept from the listener, so that an accepted one has bytes to read; 0 accepts at once.
    pub defer_seconds: u32,
    /// Whether several listeners share the address (SO_REUSEPORT); without it a second process is refused.
    pub shared: bool,
}

/// Binds and listens. An unspecified IPv6 address takes IPv4 too, whatever net.ipv6.bindv6only says (RFC 3493 section 5.3).
///
/// # Errors
/// As socket(2), bind(2) and listen(2); EAFNOSUPPORT and EADDRNOTAVAIL for an IPv6 address where there is no IPv6; EADDRINUSE when another process listens there, or when it is taken without `shared`.
pub fn listen(address: SocketAddr, options: ListenOptions) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: creates a descriptor; nothing is passed in but numbers.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) })?;
    // SAFETY: the descriptor was just made and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: c_int = 1;
    set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &on)?;
    if options.shared {
        set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &on)?;
    }
    set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, &on)?;
    set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &(options.defer_seconds as c_int))?;
    set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &(options.notsent_bytes as c_int))?;
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: all-zero bytes are a valid sockaddr_in.
            let mut raw: libc::sockaddr_in = unsafe { zeroed() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            bind(&fd, &raw)?;
        }
        SocketAddr::V6(v6) => {
            // SAFETY: all-zero bytes are a valid sockaddr_in6.
            let mut raw: libc::sockaddr_in6 = unsafe { zeroed() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            let off: c_int = 0;
            set_option(fd.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &off)?;
            bind(&fd, &raw)?;
        }
    }
    let backlog = c_int::try_from(options.backlog).unwrap_or(c_int::MAX);
    // SAFETY: acts on a descriptor that we own.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(fd)
}

fn bind<T>(fd: &OwnedFd, address: &T) -> io::Result<()> {
    // SAFETY: `address` is a live socket address of the size passed; the kernel only reads it.
    check(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(address).cast(), size_of::<T>() as socklen_t) })?;
    Ok(())
}

/// The first descriptor that is passed to a process by its parent (sd_listen_fds(3)).
pub const FIRST_PASSED: RawFd = 3;

/// Takes over a descriptor that this process was started with, if it is a listening TCP socket, and its address. To be called once for each number.
///
/// # Errors
/// What is wrong with it, to follow upon its name.
pub fn passed_listener(fd: RawFd) -> Result<(OwnedFd, SocketAddr), String> {
    let listens = option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).map_err(|error| format!("is no socket ({error})"))?;
    let protocol = option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL).unwrap_or(0);
    if listens == 0 || protocol != libc::IPPROTO_TCP {
        return Err("is no listening TCP socket".to_owned());
    }
    // SAFETY: sets a flag of a descriptor that is open, as asked above.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // Several threads accept on it: who finds nobody must not wait.
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
    // SAFETY: the descriptor is open, and by the caller's promise nobody else in this process has taken it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = local_addr(&fd).map_err(|error| format!("has no address ({error})"))?;
    Ok((fd, address))
}

/// Becomes another program, which is passed these descriptors from [`FIRST_PASSED`] on, in order. Returns only when that fails; the process can only end then,
/// because whatever had those numbers is lost: only threads that the new program ends anyhow may still use them.
pub fn exec_with(command: &mut Command, descriptors: Vec<OwnedFd>) -> io::Error {
    // First out of each other's way: above every number that is to be taken.
    let above = FIRST_PASSED + descriptors.len() as RawFd;
    let mut moved = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        // SAFETY: duplicates a descriptor that we own; nothing is passed in but numbers.
        match check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) }) {
            Ok(fd) => moved.push(fd),
            Err(error) => return error,
        }
    }
    for (number, fd) in (FIRST_PASSED..).zip(moved) {
        // SAFETY: as above. What had the number is closed; by the caller's promise it is nobody's who needs it.
        if let Err(error) = check(unsafe { libc::dup2(fd, number) }) {
            return error;
        }
    }
    command.exec()
}

/// Gives a listener that was made elsewhere the options of ours that accepted sockets inherit. What cannot be set stays as it is.
pub fn adjust_listener(fd: &OwnedFd, options: ListenOptions) {
    let fd = fd.as_raw_fd();
    let on: c_int = 1;
    let _ = set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &on);
    let _ = set_option(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &(options.defer_seconds as c_int));
    let _ = set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &(options.notsent_bytes as c_int));
}

fn option(fd: RawFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into a live c_int; a number that is no socket is an error.
    check(unsafe { libc::getsockopt(fd, level, name, std::ptr::from_mut(&mut value).cast(), &mut len) })?;
    Ok(value)
}

/// The address that a listener is bound to, with the port that the kernel chose for port 0.
///
/// # Errors
/// As getsockname(2).
pub fn local_addr(fd: &OwnedFd) -> io::Result<SocketAddr> {
    address_of(|address, len| {
        // SAFETY: `address` points to `*len` writable bytes.
        unsafe { libc::getsockname(fd.as_raw_fd(), address, len) }
    })
}

/// An eventfd, readable when its counter is above zero; the wake-up that works from any thread.
///
/// # Errors
/// As eventfd(2).
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: creates a descriptor; nothing is passed in but numbers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd. Full (it cannot be, short of 2^64 wake-ups) means that its reader is awake anyway.
pub fn eventfd_signal(fd: RawFd) {
    let one: u64 = 1;
    // SAFETY: writes eight live bytes to a descriptor number; the kernel only reads them.
    unsafe { libc::write(fd, std::ptr::from_ref(&one).cast(), 8) };
}

/// Sets an eventfd back to zero.
pub fn eventfd_clear(fd: RawFd) {
    let mut count: u64 = 0;
    // SAFETY: reads eight bytes into a live u64.
    unsafe { libc::read(fd, std::ptr::from_mut(&mut count).cast(), 8) };
}

/// Takes one connection from a non-blocking listener.
///
/// # Errors
/// As accept4(2); `WouldBlock` when nobody waits.
pub fn accept(listener: RawFd) -> io::Result<Socket> {
    // SAFETY: no address is asked for; creates a descriptor that the caller owns.
    let fd = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) };
    check(fd).map(Socket)
}

/// Errors of accept(2) that say something about the client at the head of the queue and nothing about the next.
pub fn concerns_one_client(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
        )
    )
}

/// A listening socket on its way to a driver. As with [`Socket`], whoever holds it closes it, and in a simulated kernel the number means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a listener that nobody takes is leaked"]
pub struct Listener {
    socket: Socket,
    /// Other processes, now or later, listen on the same socket: its options are theirs too.
    lent: bool,
}

impl Listener {
    /// A listener of this driver alone.
    pub fn own(fd: OwnedFd) -> Self {
        Self { socket: Socket(fd.into_raw_fd()), lent: false }
    }

    /// One whose socket others hold too.
    pub fn lent(fd: OwnedFd) -> Self {
        Self { socket: Socket(fd.into_raw_fd()), lent: true }
    }

    /// One of a simulated kernel.
    pub const SIMULATED: Self = Self { socket: Socket(-1), lent: false };

    /// Closes it.
    pub fn discard(self) {
        self.socket.close();
    }

    pub(super) fn open(self) -> OpenListener {
        // SAFETY: the number came from an `OwnedFd`, and whoever holds a `Listener` holds it alone.
        OpenListener { fd: unsafe { OwnedFd::from_raw_fd(self.socket.0) }, lent: self.lent }
    }
}

/// Clients that may wait in a backlog (listen(2), somaxconn): no more are accepted when a listener is closed.
const BACKLOG_MAX: usize = 65_536;

/// A listening socket that a driver accepts on.
pub(super) struct OpenListener {
    fd: OwnedFd,
    lent: bool,
}

impl OpenListener {
    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Has the kernel drop what would begin a connection (socket(7), SO_ATTACH_FILTER), and hand over at once whoever completes one. What closing a listener
    /// resets is its backlog, which can be accepted first, and connections that are being made, which cannot: with no new ones among them, a moment later
    /// hardly any are left. A socket that others listen on stays as it is: closing our descriptor of it resets nothing.
    pub(super) fn shut_door(&self) -> bool {
        if self.lent {
            return false;
        }
        let op = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
        // The flags of the TCP header: SYN without ACK is dropped, all else let through. Accepted sockets inherit the filter and never see such a packet.
        let mut program = [op(0x30, 0, 13), op(0x54, 0, 0x12), op(0x15, 1, 0x02), op(0x06, 0, 0), op(0x06, 0, u32::MAX)];
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        let now: c_int = 0;
        // Where the kernel refuses, a few more connections are reset.
        let _ = set_option(self.fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter);
        let _ = set_option(self.fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &now);
        true
    }

    /// Accepts whoever waits, and closes.
    pub(super) fn close(self) -> Vec<Socket> {
        let mut last = Vec::new();
        while !self.lent && last.len() < BACKLOG_MAX {
            match accept(self.fd()) {
                Ok(socket) => last.push(socket),
                Err(error) if concerns_one_client(&error) => {}
                Err(_) => break,
            }
        }
        last
    }
}

/// Soft and hard limit of file descriptors (RLIMIT_NOFILE).
pub fn nofile_limits() -> (u64, u64) {
    rlimit(libc::RLIMIT_NOFILE)
}

/// Raises the soft limit of file descriptors to the hard one and returns it.
///
/// # Errors
/// As setrlimit(2).
pub fn raise_nofile() -> io::Result<u64> {
    let (soft, hard) = nofile_limits();
    if soft < hard {
        let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
        // SAFETY: the kernel reads a live struct.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    }
    Ok(hard)
}

/// Bytes of memory that this user may lock, soft limit (RLIMIT_MEMLOCK); rings are charged against it for ordinary users.
pub fn memlock_limit() -> u64 {
    rlimit(libc::RLIMIT_MEMLOCK).0
}

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = c_int;

fn rlimit(resource: Resource) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes into a live struct.
    unsafe { libc::getrlimit(resource, &mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// The CPUs that this thread may run on.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: all-zero bytes are a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the kernel writes into a live cpu_set_t of the size passed.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: CPU_ISSET reads a bit of a live set, and the index stays below its size.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Binds this thread to one CPU.
///
/// # Errors
/// As sched_setaffinity(2): EINVAL when the CPU is not among the allowed ones.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all-zero bytes are a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: sets a bit below CPU_SETSIZE (checked above) of a live set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads a live set of the size passed.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })?;
    Ok(())
}

/// Lets this thread sleep for microseconds: the kernel adds up to 50 µs to every sleep unless told otherwise.
pub fn sharp_sleep() {
    // SAFETY: sets a number of this thread; nothing is passed in but numbers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

/// Keeps transparent huge pages out of this process. Its small objects are spread over the allocator's arenas; in pages of 2 MiB an idle connection
/// would take several times its size.
pub fn disable_huge_pages() {
    // SAFETY: sets a flag of this process; nothing is passed in but numbers.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Has this thread's heap give freed memory back to the system; under glibc's allocator every thread's. Where another one is in use this does nothing of
/// worth, and no harm.
pub fn release_freed_memory() {
    #[cfg(feature = "mimalloc")]
    // SAFETY: takes no pointers; frees what the calling thread's own mimalloc heap holds for later use.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
    #[cfg(all(not(feature = "mimalloc"), target_env = "gnu"))]
    // SAFETY: takes no pointers; glibc locks its arenas and gives back pages that hold nothing live.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The kernel's release, for example `6.18.4`.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

/// Ends the process at once, without unwinding or destructors: the kernel may still be using buffers that they would free.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return, and runs no code of ours.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn accepted_sockets_inherit_the_listeners_options() {
        let options = ListenOptions { backlog: 8, notsent_bytes: 16384, defer_seconds: 0, shared: true };
        let listener = listen("127.0.0.1:0".parse().expect("address"), options).expect("listens");
        let address = local_addr(&listener).expect("address");
        let client = TcpStream::connect(address).expect("connects");
        let socket = accept(listener.as_raw_fd()).expect("accepts");
        assert_eq!(option(socket.0, libc::IPPROTO_TCP, libc::TCP_NODELAY).ok(), Some(1));
        assert_eq!(option(socket.0, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT).ok(), Some(16384));
        assert_eq!(socket.peer_addr(), client.local_addr().ok());
        socket.close();
    }

    #[test]
    fn a_second_exclusive_listener_is_refused() {
        let options = ListenOptions { backlog: 8, notsent_bytes: 16384, defer_seconds: 0, shared: false };
        let first = listen("127.0.0.1:0".parse().expect("address"), options).expect("listens");
        let taken = listen(local_addr(&first).expect("address"), options).expect_err("refused");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    /// Whether this machine has IPv6: without it there is nothing to listen on.
    fn has_ipv6() -> bool {
        std::net::UdpSocket::bind("[::1]:0").is_ok()
    }

    #[test]
    fn one_listener_takes_both_families_and_a_client_over_ipv4_has_its_ipv4_address() {
        let options = ListenOptions { backlog: 8, notsent_bytes: 16384, defer_seconds: 0, shared: true };
        let made = listen("[::]:0".parse().expect("address"), options);
        if !has_ipv6() {
            return assert!(made.is_err(), "there is no IPv6 here");
        }
        let listener = made.expect("listens");
        let port = local_addr(&listener).expect("address").port();
        for host in ["127.0.0.1", "::1"] {
            let client = TcpStream::connect((host, port)).expect("connects");
            let socket = accept(listener.as_raw_fd()).expect("accepts");
            assert_eq!(socket.peer_addr(), client.local_addr().ok(), "{host}");
            socket.close();
        }
    }

    #[test]
    fn a_listener_of_both_families_is_refused_where_one_of_ipv4_is_and_the_other_way_around() {
        if !has_ipv6() {
            return;
        }
        let options = ListenOptions { backlog: 8, notsent_bytes: 16384, defer_seconds: 0, shared: false };
        for (first, second) in [("127.0.0.1", "[::]"), ("0.0.0.0", "[::]"), ("[::]", "127.0.0.1"), ("[::]", "0.0.0.0"), ("[::]", "[::1]")] {
            let holder = listen(format!("{first}:0").parse().expect("address"), options).expect("listens");
            let port = local_addr(&holder).expect("address").port();
            let taken = listen(format!("{second}:{port}").parse().expect("address"), options).expect_err("refused");
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse, "{second} beside {first}");
        }
    }

    #[test]
    fn an_eventfd_counts_and_clears() {
        let fd = eventfd().expect("eventfd");
        eventfd_signal(fd.as_raw_fd());
        eventfd_signal(fd.as_raw_fd());
        eventfd_clear(fd.as_raw_fd());
    }
}
