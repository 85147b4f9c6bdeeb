//! A network namespace for each process of the product, and packets that the kernel drops.
//!
//! All of them hang on one bridge in this namespace, where the harness, the sink and [`crate::links`] are. What is
//! dropped here is dropped: no reset, no end of stream, and TCP sends it again.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

/// The interface inside a namespace.
const INSIDE: &str = "eth0";

/// What the kernel does with the packets of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing reaches it.
    In,
    /// Nothing leaves it.
    Out,
    Both,
    /// So many of a hundred are lost, each way.
    Percent(u8),
    /// Every connection to it is reset.
    Reset,
}

#[derive(Debug)]
struct Home {
    namespace: String,
    address: Ipv4Addr,
}

/// Namespaces of one cluster. Dropping it deletes them and the bridge.
#[derive(Debug)]
pub struct Namespaces {
    bridge: String,
    host: Ipv4Addr,
    homes: BTreeMap<String, Home>,
}

fn ip(line: &str) -> Result<()> {
    let program = tools::find("ip").context("ip is missing (make chaos installs iproute2)")?;
    tools::run(Command::new(program).args(line.split(' '))).map(|_| ())
}

impl Namespaces {
    /// Makes a bridge, and a namespace with an address for each name.
    ///
    /// # Errors
    /// When this process may not (it needs root), or `ip` or `iptables` is missing.
    pub fn create(names: &[String]) -> Result<Self> {
        tools::find("iptables").context("iptables is missing (make chaos installs it)")?;
        let number = std::process::id();
        let bridge = format!("sl{number}");
        let mut made = Self {
            host: Ipv4Addr::UNSPECIFIED,
            homes: BTreeMap::new(),
            bridge: bridge.clone(),
        };
        ip(&format!("link add {bridge} type bridge"))?;
        // A network that nobody else here uses.
        let host = (0..50).find_map(|_| {
            let [a, b] = rand::random::<[u8; 2]>();
            let host = Ipv4Addr::new(10, a, b, 1);
            let free = !routes().ok()?.contains(&format!("10.{a}.{b}."));
            (free && ip(&format!("addr add {host}/24 dev {bridge}")).is_ok()).then_some(host)
        });
        made.host = host.context("no free network")?;
        ip(&format!("link set {bridge} up"))?;
        for (at, name) in (2..).zip(names) {
            made.add(name, at)?;
        }
        Ok(made)
    }

    fn add(&mut self, name: &str, at: u8) -> Result<()> {
        let (bridge, namespace) = (self.bridge.clone(), format!("{}-{at}", self.bridge));
        let [a, b, c, _] = self.host.octets();
        let address = Ipv4Addr::new(a, b, c, at);
        ip(&format!("netns add {namespace}"))?;
        let home = Home {
            namespace: namespace.clone(),
            address,
        };
        self.homes.insert(name.to_owned(), home);
        let veth = format!("{bridge}v{at}");
        ip(&format!(
            "link add {veth} type veth peer name {INSIDE} netns {namespace}"
        ))?;
        ip(&format!("link set {veth} master {bridge}"))?;
        ip(&format!("link set {veth} up"))?;
        ip(&format!(
            "-n {namespace} addr add {address}/24 dev {INSIDE}"
        ))?;
        ip(&format!("-n {namespace} link set {INSIDE} up"))?;
        ip(&format!("-n {namespace} link set lo up"))
    }

    fn home(&self, name: &str) -> Result<&Home> {
        self.homes
            .get(name)
            .with_context(|| format!("{name} has no namespace"))
    }

    /// Where all of them reach this process.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        self.host
    }

    /// The interface on which everything between them can be heard.
    #[must_use]
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// # Errors
    /// When it has no namespace.
    pub fn address(&self, name: &str) -> Result<Ipv4Addr> {
        self.home(name).map(|home| home.address)
    }

    /// Names by their addresses.
    pub fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, String)> {
        self.homes
            .iter()
            .map(|(name, home)| (home.address, name.clone()))
    }

    /// The file of a namespace.
    ///
    /// # Errors
    /// When it has none.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        Ok(PathBuf::from("/run/netns").join(&self.home(name)?.namespace))
    }

    fn iptables(&self, name: &str, line: &str) -> Result<String> {
        let program = tools::find("iptables").context("iptables is missing")?;
        let inside = format!("--net={}", self.path(name)?.display());
        let mut command = Command::new("nsenter");
        command
            .arg(inside)
            .arg("--")
            .arg(program)
            .arg("-w")
            .args(line.split(' '));
        let output = tools::run(&mut command)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Packets of this process are lost from now on, on top of what is lost already.
    ///
    /// # Errors
    /// When iptables refuses.
    pub fn lose(&self, name: &str, loss: Loss) -> Result<()> {
        let random = |percent: u8| {
            ensure!(percent <= 100, "{percent} %");
            anyhow::Ok(format!(
                "-m statistic --mode random --probability {:.2}",
                f32::from(percent) / 100.0
            ))
        };
        let rules = match loss {
            Loss::In => vec![format!("-A INPUT -i {INSIDE} -j DROP")],
            Loss::Out => vec![format!("-A OUTPUT -o {INSIDE} -j DROP")],
            Loss::Both => vec![
                format!("-A INPUT -i {INSIDE} -j DROP"),
                format!("-A OUTPUT -o {INSIDE} -j DROP"),
            ],
            Loss::Percent(percent) => vec![
                format!("-A INPUT -i {INSIDE} {} -j DROP", random(percent)?),
                format!("-A OUTPUT -o {INSIDE} {} -j DROP", random(percent)?),
            ],
            Loss::Reset => vec![format!(
                "-A INPUT -i {INSIDE} -p tcp -j REJECT --reject-with tcp-reset"
            )],
        };
        for rule in rules {
            self.iptables(name, &rule)?;
        }
        Ok(())
    }

    /// Packets that were lost since the last [`Self::heal`].
    ///
    /// # Errors
    /// When iptables does not say.
    pub fn lost(&self, name: &str) -> Result<u64> {
        let said = self.iptables(name, "-L -v -x -n")?;
        let rules = said
            .lines()
            .filter(|line| line.contains("DROP ") || line.contains("REJECT "));
        let counted = rules.filter(|line| !line.starts_with("Chain"));
        let packets =
            counted.map(|line| line.split_whitespace().next().unwrap_or("0").parse::<u64>());
        let sum = packets.sum::<Result<u64, _>>();
        sum.with_context(|| format!("iptables said {said}"))
    }

    /// Everything passes again; gives how many packets were lost.
    ///
    /// # Errors
    /// When iptables refuses.
    pub fn heal(&self, name: &str) -> Result<u64> {
        let lost = self.lost(name)?;
        self.iptables(name, "-F")?;
        Ok(lost)
    }
}

fn routes() -> Result<String> {
    let program = tools::find("ip").context("ip is missing")?;
    let output = tools::run(Command::new(program).args(["-4", "route"]))?;
    if output.stdout.is_empty() {
        bail!("no routes");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for home in self.homes.values() {
            let _gone = ip(&format!("netns del {}", home.namespace));
        }
        let _gone = ip(&format!("link del {}", self.bridge));
    }
}
