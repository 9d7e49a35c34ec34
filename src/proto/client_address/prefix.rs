//! Prefixes of addresses (RFC 4632, CIDR): as the networks that are trusted, and as what one client is for its limits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The bits before an IPv4 address that is written as IPv6, `::ffff:0:0/96`.
const MAPPED_BITS: u8 = 96;

/// All addresses that begin with the same bits. 17 bytes, as a key of maps.
///
/// ```
/// use shardcast::proto::client_address::{Prefix, PrefixLengths};
///
/// let network = Prefix::parse("10.0.0.0/8")?;
/// assert!(network.contains("10.1.2.3".parse()?) && network.contains("::ffff:10.1.2.3".parse()?));
/// assert_eq!(Prefix::parse("10.1.0.0/8").unwrap_err().to_string(), "network 10.1.0.0/8 has bits set after its first 8; write 10.0.0.0/8");
///
/// let of = |address: &str| address.parse().map(|address| Prefix::of(address, PrefixLengths::default()).to_string());
/// assert_eq!((of("203.0.113.7")?, of("2001:db8:1:2:3::4")?), ("203.0.113.7".to_owned(), "2001:db8:1:2::/64".to_owned()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The bits and zeros after them, of IPv4 as IPv6.
    bits: [u8; 16],
    /// How many of them count, 0 to 128.
    length: u8,
}

/// How much of an address is one client: of IPv4 all 32 bits unless said otherwise, of IPv6 the first 64, because a single machine has 2⁶⁴
/// addresses of its own to choose from (RFC 4291 section 2.5.4; RFC 6177 section 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefixLengths {
    ipv4: u8,
    ipv6: u8,
}

/// The networks whose word is taken for who a client is. None unless somebody names them.
///
/// ```
/// use shardcast::proto::client_address::Networks;
///
/// let trusted = Networks::parse(["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])?;
/// assert!(trusted.contains("10.1.2.3".parse()?) && !trusted.contains("192.0.2.7".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Networks(Box<[Prefix]>);

impl Prefix {
    /// The prefix that this address has, as long as is said for its family.
    pub fn of(address: IpAddr, lengths: PrefixLengths) -> Self {
        let length = match address.to_canonical() {
            IpAddr::V4(_) => MAPPED_BITS + lengths.ipv4,
            IpAddr::V6(_) => lengths.ipv6,
        };
        Self { bits: (bits(address) & mask(length)).to_be_bytes(), length }
    }

    /// Parses `ADDRESS/LENGTH`, or one address.
    ///
    /// # Errors
    /// What is neither, and an address with bits set that do not count: one of its two halves is a mistake.
    pub fn parse(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Address { text: text.to_owned() })?;
        let (first, full) = if address.is_ipv4() { (MAPPED_BITS, 32) } else { (0, 128) };
        let length = match length {
            None => full,
            Some(length) => super::decimal(length)
                .and_then(|length| u8::try_from(length).ok())
                .filter(|length| *length <= full)
                .ok_or_else(|| PrefixError::Length { text: text.to_owned(), length: length.to_owned(), max: full })?,
        };
        let all = bits(address);
        let prefix = Self { bits: (all & mask(first + length)).to_be_bytes(), length: first + length };
        if all != prefix.bits() {
            return Err(PrefixError::BitsAfter { text: text.to_owned(), length, prefix });
        }
        Ok(prefix)
    }

    /// Whether the address begins with it. An IPv4 address begins with no prefix of IPv6, not even `::/0`.
    pub fn contains(self, address: IpAddr) -> bool {
        bits(address) & mask(self.length) == self.bits() && (self.ipv4().is_some() || address.to_canonical().is_ipv6())
    }

    fn bits(self) -> u128 {
        u128::from_be_bytes(self.bits)
    }

    /// The first of its addresses, when they are IPv4. No prefix of IPv6 has such bits: it would have all 96, and its addresses would be IPv4.
    fn ipv4(self) -> Option<Ipv4Addr> {
        Ipv6Addr::from_bits(self.bits()).to_ipv4_mapped()
    }
}

impl PrefixLengths {
    /// Both lengths, in bits.
    ///
    /// # Errors
    /// Over 32 bits of IPv4, over 128 of IPv6.
    pub fn new(ipv4: u8, ipv6: u8) -> Result<Self, PrefixError> {
        match (ipv4, ipv6) {
            (0..=32, 0..=128) => Ok(Self { ipv4, ipv6 }),
            (0..=32, _) => Err(PrefixError::LengthOf { family: "IPv6", length: ipv6, max: 128 }),
            _ => Err(PrefixError::LengthOf { family: "IPv4", length: ipv4, max: 32 }),
        }
    }
}

impl Default for PrefixLengths {
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

impl Networks {
    /// The most networks. The longest lists that are published, of content delivery networks, have a few hundred.
    pub const NETWORKS_MAX: usize = 1024;

    /// Parses each as [`Prefix::parse`] does.
    ///
    /// # Errors
    /// The first that is no network, and over [`Self::NETWORKS_MAX`].
    pub fn parse<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, NetworksError> {
        let mut networks = Vec::new();
        for text in texts {
            if networks.len() == Self::NETWORKS_MAX {
                return Err(NetworksError::TooMany);
            }
            networks.push(Prefix::parse(text)?);
        }
        Ok(Self(networks.into()))
    }

    /// Whether the address is in one of them. Looks at each: a request asks for its proxies and for one more address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The networks, as they were given.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Prefix> + '_ {
        self.0.iter().copied()
    }
}

/// As it is parsed; a prefix that is one whole address is that address.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = match self.ipv4() {
            Some(first) => write!(f, "{first}").map(|()| self.length - MAPPED_BITS),
            None => write!(f, "{}", Ipv6Addr::from_bits(self.bits())).map(|()| self.length),
        }?;
        if self.length == 128 { Ok(()) } else { write!(f, "/{length}") }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no [`Prefix`], or a number no length of one. Who wrote the configuration is at fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PrefixError {
    /// No address before the slash.
    #[error("network {text:?} does not begin with an IPv4 or IPv6 address; write for example 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7")]
    Address {
        /// What came.
        text: String,
    },
    /// Not a decimal number, or too large.
    #[error("network {text:?} has the length {length:?}; 0 to {max} are possible")]
    Length {
        /// What came.
        text: String,
        /// After its slash.
        length: String,
        /// The length of a whole address.
        max: u8,
    },
    /// Bits that do not count are not 0.
    #[error("network {text} has bits set after its first {length}; write {prefix}")]
    BitsAfter {
        /// What came.
        text: String,
        /// Its length.
        length: u8,
        /// The same without those bits.
        prefix: Prefix,
    },
    /// For [`PrefixLengths`].
    #[error("prefix length for {family} is {length} bits; 0 to {max} are possible")]
    LengthOf {
        /// IPv4 or IPv6.
        family: &'static str,
        /// What came.
        length: u8,
        /// The length of a whole address.
        max: u8,
    },
}

/// Why there are no [`Networks`]. Who wrote the configuration is at fault.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NetworksError {
    /// Over [`Networks::NETWORKS_MAX`].
    #[error("there are over {max} networks; join neighbours to shorter prefixes", max = Networks::NETWORKS_MAX)]
    TooMany,
    /// One of them is none.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
}

/// An address as the 128 bits of IPv6.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Ones where the first `length` bits are.
fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn contains(network: &str, text: &str) -> bool {
        Prefix::parse(network).expect("a network").contains(address(text))
    }

    #[test]
    fn a_network_has_its_first_and_last_address_and_not_their_neighbours() {
        for (network, before, first, last, after) in [
            ("10.0.0.0/8", "9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
            ("192.0.2.128/25", "192.0.2.127", "192.0.2.128", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "192.0.2.6", "192.0.2.7", "192.0.2.7", "192.0.2.8"),
            (
                "2001:db8::/32",
                "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
                "2001:db8::",
                "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
                "2001:db9::",
            ),
            ("fe80::/10", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fec0::"),
            ("::1", "::", "::1", "::1", "::2"),
        ] {
            let inside = [before, first, last, after].map(|text| contains(network, text));
            assert_eq!(inside, [false, true, true, false], "{network}");
        }
    }

    #[test]
    fn an_ipv4_address_written_as_ipv6_is_the_ipv4_address() {
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert_eq!(Prefix::parse("::ffff:10.0.0.0/104"), Prefix::parse("10.0.0.0/8"));
        assert_eq!(Prefix::parse("::ffff:0:0/96"), Prefix::parse("0.0.0.0/0"));
        assert_eq!(Prefix::parse("::ffff:192.0.2.7"), Prefix::parse("192.0.2.7"));
        let lengths = PrefixLengths::new(24, 64).expect("lengths");
        assert_eq!(Prefix::of(address("::ffff:192.0.2.7"), lengths), Prefix::of(address("192.0.2.200"), lengths));
    }

    #[test]
    fn a_network_holds_addresses_of_its_own_family_only() {
        for (network, text, expect) in [
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::", false),
            ("0.0.0.0/0", "::1:0:0:0", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "::fffe:a01:203", true),
            ("::/0", "10.1.2.3", false),
            ("::/0", "::ffff:10.1.2.3", false),
            ("::/64", "10.1.2.3", false),
            ("::fffe:0:0/95", "10.1.2.3", false),
            ("::fffe:0:0/95", "::fffe:1:2", true),
        ] {
            assert_eq!(contains(network, text), expect, "{text} in {network}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_is() {
        for (text, error) in [
            ("", "network \"\" does not begin with an IPv4 or IPv6 address; write for example 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7"),
            (
                "10.0/8",
                "network \"10.0/8\" does not begin with an IPv4 or IPv6 address; write for example 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7",
            ),
            ("10.0.0.0/33", "network \"10.0.0.0/33\" has the length \"33\"; 0 to 32 are possible"),
            ("10.0.0.0/", "network \"10.0.0.0/\" has the length \"\"; 0 to 32 are possible"),
            ("10.0.0.0/255.0.0.0", "network \"10.0.0.0/255.0.0.0\" has the length \"255.0.0.0\"; 0 to 32 are possible"),
            ("::/129", "network \"::/129\" has the length \"129\"; 0 to 128 are possible"),
            ("::/99999999999", "network \"::/99999999999\" has the length \"99999999999\"; 0 to 128 are possible"),
            ("10.1.2.3/8", "network 10.1.2.3/8 has bits set after its first 8; write 10.0.0.0/8"),
            ("10.0.0.1/0", "network 10.0.0.1/0 has bits set after its first 0; write 0.0.0.0/0"),
            ("2001:db8::1/64", "network 2001:db8::1/64 has bits set after its first 64; write 2001:db8::/64"),
            ("::ffff:0:0/95", "network ::ffff:0:0/95 has bits set after its first 95; write ::fffe:0:0/95"),
        ] {
            assert_eq!(Prefix::parse(text).map_err(|error| error.to_string()), Err(error.to_owned()));
        }
        for text in
            ["localhost", " 10.0.0.0/8", "010.0.0.0/8", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0.0/8/8", "[::1]", "fe80::1%1", "1.2.3.4:5"]
        {
            assert!(Prefix::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_of_networks_ends_at_the_first_mistake_and_at_its_bound() {
        let networks = Networks::parse(["10.0.0.0/8", "::1"]).expect("networks");
        assert_eq!(networks.iter().map(|network| network.to_string()).collect::<Vec<_>>(), ["10.0.0.0/8", "::1"]);
        assert_eq!(["10.9.8.7", "::1", "11.0.0.0", "::2"].map(|text| networks.contains(address(text))), [true, true, false, false]);
        assert!(!Networks::default().contains(address("127.0.0.1")));
        let mistake = Networks::parse(["::1", "x", "y"]).expect_err("x is no network");
        assert!(matches!(&mistake, NetworksError::Prefix(PrefixError::Address { text }) if text == "x"), "{mistake}");
        let many = |count| Networks::parse(std::iter::repeat_n("::1", count)).map(|networks| networks.iter().len());
        assert_eq!(many(Networks::NETWORKS_MAX), Ok(Networks::NETWORKS_MAX));
        assert_eq!(many(Networks::NETWORKS_MAX + 1), Err(NetworksError::TooMany));
        assert_eq!(NetworksError::TooMany.to_string(), "there are over 1024 networks; join neighbours to shorter prefixes");
    }

    #[test]
    fn a_client_is_the_prefix_of_its_address() {
        assert!(size_of::<Prefix>() <= 17);
        for (ipv4, ipv6, text, expect) in [
            (32, 64, "203.0.113.7", "203.0.113.7"),
            (32, 64, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            (32, 64, "::1", "::/64"),
            (24, 48, "203.0.113.7", "203.0.113.0/24"),
            (24, 48, "2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
            (32, 128, "2001:db8::1", "2001:db8::1"),
            (0, 0, "203.0.113.7", "0.0.0.0/0"),
            (0, 0, "2001:db8::1", "::/0"),
        ] {
            let lengths = PrefixLengths::new(ipv4, ipv6).expect("possible lengths");
            assert_eq!(format!("{0} {0:?}", Prefix::of(address(text), lengths)), format!("{expect} {expect}"));
        }
        assert_eq!(PrefixLengths::new(32, 64), Ok(PrefixLengths::default()));
        let refused = |ipv4, ipv6| PrefixLengths::new(ipv4, ipv6).unwrap_err().to_string();
        assert_eq!(refused(33, 64), "prefix length for IPv4 is 33 bits; 0 to 32 are possible");
        assert_eq!(refused(32, 129), "prefix length for IPv6 is 129 bits; 0 to 128 are possible");
    }

    #[test]
    fn every_prefix_prints_what_parses_to_it_and_holds_what_begins_with_it() {
        for seed in 0..2000 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let any = |random: &mut rand::rngs::StdRng| match random.random_range(0..3) {
                0 => IpAddr::V4(Ipv4Addr::from_bits(random.random())),
                1 => IpAddr::V6(Ipv4Addr::from_bits(random.random()).to_ipv6_mapped()),
                _ => IpAddr::V6(Ipv6Addr::from_bits(random.random::<u128>() >> random.random_range(0..128))),
            };
            let (one, other) = (any(&mut random), any(&mut random));
            let lengths = PrefixLengths::new(random.random_range(0..=32), random.random_range(0..=128)).expect("possible lengths");
            let prefix = Prefix::of(one, lengths);
            assert_eq!(Prefix::parse(&prefix.to_string()), Ok(prefix), "seed {seed}");
            assert!(prefix.contains(one), "seed {seed}");
            for address in [one, other, one.to_canonical()] {
                assert_eq!(prefix.contains(address), Prefix::of(address, lengths) == prefix, "seed {seed}: {address} in {prefix}");
            }
        }
    }
}
