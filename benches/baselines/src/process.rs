//! The process: command line, CPU, descriptors, and a listener with the gateway's options.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::FromRawFd;

use libc::c_int;

/// The words of the command line.
#[derive(Debug)]
pub struct Args {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Frames of one read leave in one write.
    pub merge: bool,
}

/// Reads the command line, takes the CPU, and raises the descriptor limit. Wrong words end the process.
pub fn start() -> Args {
    let mut args = Args { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), merge: false };
    let mut cpu = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--merge" => args.merge = true,
            "--listen" => args.listen = words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| usage()),
            "--cpu" => cpu = Some(words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| usage())),
            _ => usage(),
        }
    }
    prepare(cpu);
    args
}

fn usage() -> ! {
    eprintln!("usage: [--listen ADDR:PORT] [--cpu N] [--merge (send_loop and uring_loop)]");
    std::process::exit(2);
}

fn prepare(cpu: Option<usize>) {
    // SAFETY: all-zero bytes are a valid cpu_set_t and rlimit, and the kernel reads and writes live values of the size passed.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        // As the gateway does: huge pages cost an idle connection several times its size.
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        if let Some(cpu) = cpu {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu % libc::CPU_SETSIZE as usize, &mut set);
            assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0, "CPU {cpu} cannot be taken");
        }
    }
}

/// Listens with the options that the gateway's sockets have, says `ready`, and leaves waiting to the caller: the listener is non-blocking.
pub fn listen(address: SocketAddr) -> TcpListener {
    let SocketAddr::V4(address) = address else { usage() };
    // SAFETY: numbers, and live values of the size passed; the descriptor is new and nobody else owns it.
    let listener = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        let set = |level: c_int, name: c_int, value: c_int| libc::setsockopt(fd, level, name, (&raw const value).cast(), 4);
        set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
        set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        // Accepted sockets inherit both.
        set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        set(libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 16 * 1024);
        let mut raw: libc::sockaddr_in = std::mem::zeroed();
        raw.sin_family = libc::AF_INET as u16;
        raw.sin_port = address.port().to_be();
        raw.sin_addr.s_addr = u32::from(*address.ip()).to_be();
        let bound = libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as u32) == 0 && libc::listen(fd, 4096) == 0;
        assert!(bound, "{address} cannot be listened on: {}", std::io::Error::last_os_error());
        TcpListener::from_raw_fd(fd)
    };
    println!("ready");
    let _ = std::io::stdout().flush();
    listener
}
