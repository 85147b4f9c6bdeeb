use super::*;
use proptest::prelude::*;

/// Reads a header as a driver does, at most `at_once` octets at a time; how many octets it took.
fn read(stream: &[u8], at_once: usize) -> Option<(Result<Announced, Malformed>, usize)> {
    let mut taken = 0;
    loop {
        match step(&stream[..taken]) {
            Ok(Step::Done(announced)) => return Some((Ok(announced), taken)),
            Ok(Step::Need(n)) => {
                assert!(n > 0);
                if taken == stream.len() {
                    return None;
                }
                taken = stream.len().min(taken + n.min(at_once));
            }
            Err(e) => return Some((Err(e), taken)),
        }
    }
}

fn line(text: &str) -> Result<Announced, Malformed> {
    let stream = format!("PROXY {text}EHLO client.example\r\n");
    let (announced, taken) = read(stream.as_bytes(), usize::MAX).unwrap();
    if announced.is_ok() {
        assert_eq!(&stream[taken..], "EHLO client.example\r\n");
    }
    announced
}

fn binary(command: u8, family: u8, said: &[u8]) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.extend([command, family]);
    out.extend(u16::try_from(said.len()).unwrap().to_be_bytes());
    out.extend(said);
    out
}

fn whole(stream: &[u8]) -> Result<Announced, Malformed> {
    read(stream, usize::MAX).unwrap().0
}

fn client(address: &str) -> Result<Announced, Malformed> {
    Ok(Announced::Client(address.parse().unwrap()))
}

#[test]
fn lines_of_version_1() {
    assert_eq!(
        line("TCP4 192.0.2.1 198.51.100.2 40000 25\r\n"),
        client("192.0.2.1:40000")
    );
    assert_eq!(
        line("TCP4 0.0.0.0 0.0.0.0 0 65535\r\n"),
        client("0.0.0.0:0")
    );
    assert_eq!(
        line("TCP6 2001:db8::1 2001:db8::2 65535 465\r\n"),
        client("[2001:db8::1]:65535")
    );
    assert_eq!(
        line("TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"),
        client("[::ffff:192.0.2.1]:1")
    );
    assert_eq!(line("UNKNOWN\r\n"), Ok(Announced::Own));
    assert_eq!(
        line("UNKNOWN ffff::1 \x7f anything 1 2 3\r\n"),
        Ok(Announced::Own)
    );
    let long = "f".repeat(MOST_V1 - "PROXY UNKNOWN \r\n".len());
    assert_eq!(line(&format!("UNKNOWN {long}\r\n")), Ok(Announced::Own));
    for bad in [
        "TCP4 192.0.2.1 198.51.100.2 40000\r\n",
        "TCP4 192.0.2.1 198.51.100.2 40000 25 \r\n",
        "TCP4 192.0.2.1  198.51.100.2 40000 25\r\n",
        "TCP4 192.0.2.1 198.51.100.2 40000 65536\r\n",
        "TCP4 192.0.2.1 198.51.100.2 040 25\r\n",
        "TCP4 192.0.2.1 198.51.100.2 +40 25\r\n",
        "TCP4 192.0.2.01 198.51.100.2 40 25\r\n",
        "TCP4 192.0.2.1 2001:db8::2 40 25\r\n",
        "TCP4 2001:db8::1 2001:db8::2 40 25\r\n",
        "TCP6 192.0.2.1 192.0.2.2 40 25\r\n",
        "TCP6 fe80::1%eth0 2001:db8::2 40 25\r\n",
        "TCP5 192.0.2.1 192.0.2.2 40 25\r\n",
        "tcp4 192.0.2.1 192.0.2.2 40 25\r\n",
        "UNKNOWNX and so on\r\n",
        "TCP4 192.0.2.1 198.51.100.2 40000 25\n",
        "TCP4 192.0.2.1 198.51.100.2 40000 25\r\r\n",
        "TCP4\r192.0.2.1 198.51.100.2 40000 25\r\n",
        "\r\n and a line behind it\r\n",
    ] {
        assert_eq!(line(bad), Err(Malformed::Line), "{bad:?}");
    }
    let longer = format!("UNKNOWN {long}f\r\n");
    assert_eq!(line(&longer), Err(Malformed::TooLong(MOST_V1)));
    assert_eq!(line(&"x".repeat(1000)), Err(Malformed::TooLong(MOST_V1)));
}

#[test]
fn headers_of_version_2() {
    let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0x9c, 0x40, 0, 25];
    assert_eq!(whole(&binary(0x21, 0x11, &v4)), client("192.0.2.1:40000"));
    let tlvs = [&v4[..], &[4, 0, 2, 0, 0]].concat();
    assert_eq!(whole(&binary(0x21, 0x11, &tlvs)), client("192.0.2.1:40000"));
    let mut v6 = [0; 36];
    (v6[0], v6[15], v6[33]) = (0xfd, 1, 9);
    assert_eq!(whole(&binary(0x21, 0x21, &v6)), client("[fd00::1]:9"));
    // LOCAL is a check of the proxy's own, whatever else it says.
    for family in [0x00, 0x11, 0x21, 0x31, 0xff] {
        assert_eq!(whole(&binary(0x20, family, &v4)), Ok(Announced::Own));
    }
    assert_eq!(whole(&binary(0x20, 0, &[])), Ok(Announced::Own));
    assert_eq!(whole(&binary(0x21, 0x00, &v4)), Ok(Announced::Own));
    let room = vec![0; MOST_V2 - FIXED_V2];
    assert_eq!(whole(&binary(0x20, 0, &room)), Ok(Announced::Own));
    let more = vec![0; MOST_V2 - FIXED_V2 + 1];
    assert_eq!(
        whole(&binary(0x20, 0, &more)),
        Err(Malformed::TooLong(MOST_V2))
    );
    for command in [0x22, 0x2f, 0x11, 0x31, 0x00] {
        assert_eq!(whole(&binary(command, 0x11, &v4)), Err(Malformed::Command));
    }
    // Datagrams and sockets of the file system are no clients of ours.
    for family in [0x12, 0x22, 0x31, 0x32, 0x01, 0x10, 0x41] {
        assert_eq!(whole(&binary(0x21, family, &v6)), Err(Malformed::Family));
    }
    assert_eq!(whole(&binary(0x21, 0x11, &v4[..11])), Err(Malformed::Short));
    assert_eq!(whole(&binary(0x21, 0x21, &v6[..35])), Err(Malformed::Short));
}

#[test]
fn what_comes_without_a_header_is_told_from_its_first_octets() {
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0];
    for stream in [
        &b"EHLO client.example\r\n"[..],
        b"PROXYTCP4 1.1.1.1",
        &hello,
        b"\r\n\r\n\0\r\nQUIT\r",
        b"proxy TCP4 x",
    ] {
        let (announced, taken) = read(stream, usize::MAX).unwrap();
        assert_eq!(
            (announced, taken),
            (Err(Malformed::Missing), 12),
            "{stream:?}"
        );
    }
    assert_eq!(step(b"X"), Err(Malformed::Missing));
}

proptest! {
    /// However its octets come, the header says the same, and nothing behind it is taken.
    #[test]
    fn a_header_is_read_to_its_end_and_no_further(
        source in any::<SocketAddr>(),
        other in any::<u16>(),
        version in 1..=2,
        tlvs in prop::collection::vec(any::<u8>(), 0..300),
        behind in prop::collection::vec(any::<u8>(), 0..40),
        at_once in 1usize..30,
    ) {
        let source = SocketAddr::new(source.ip(), source.port());
        let header = match (version, source.ip()) {
            (1, IpAddr::V4(a)) => format!("PROXY TCP4 {a} 192.0.2.9 {} {other}\r\n", source.port()).into_bytes(),
            (1, IpAddr::V6(a)) => format!("PROXY TCP6 {a} 2001:db8::9 {} {other}\r\n", source.port()).into_bytes(),
            (_, ip) => {
                let (family, addresses) = match ip {
                    IpAddr::V4(a) => (0x11, [a.octets(), [9; 4]].concat()),
                    IpAddr::V6(a) => (0x21, [a.octets(), [9; 16]].concat()),
                };
                let ports = [source.port().to_be_bytes(), other.to_be_bytes()].concat();
                binary(0x21, family, &[addresses, ports, tlvs].concat())
            }
        };
        let stream = [header.as_slice(), &behind].concat();
        let read = read(&stream, at_once);
        prop_assert_eq!(read, Some((Ok(Announced::Client(source)), header.len())));
    }

    /// Whatever comes, no more is read than a header may have, and nothing panics.
    #[test]
    fn anything_is_survived_within_the_bound(
        begin in prop::sample::select(vec![
            &b""[..], b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::1 ", b"PROXY UNKNOWN", SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
        ]),
        rest in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b" \r\n.:0129af".to_vec())], 0..5000),
        at_once in 1usize..30,
    ) {
        let stream = [begin, &rest].concat();
        let most = if begin.starts_with(b"PROXY") { MOST_V1 } else { MOST_V2 };
        match read(&stream, at_once) {
            Some((_, taken)) => prop_assert!(taken <= most, "{}", taken),
            None => prop_assert!(stream.len() < most),
        }
    }
}
