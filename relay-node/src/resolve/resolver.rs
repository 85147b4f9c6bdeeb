//! The resolver of a relay node.
use super::{
    AddressGuard, Hop, HopSource, MAX_ADDRESSES, MAX_EXCHANGES, ResolveError, StaticRoute,
    dns::{self, Missing},
    exchange::{self, Exchanges},
};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use sealane_types::DomainName;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Settings of the resolver.
#[derive(Debug, Clone)]
pub struct ResolverOptions {
    /// DNS servers; empty: those of the system (`/etc/resolv.conf`).
    pub nameservers: Vec<SocketAddr>,
    /// Dial loopback, private and link-local addresses that DNS names. Default false.
    pub allow_private: bool,
    /// Our own name, to see MX loops.
    pub own_name: String,
    /// Port of exchanges; 25 except in tests.
    pub exchange_port: u16,
    /// One query to one server. Default 5 s.
    pub query_timeout: Duration,
    /// All lookups of one destination. Default 30 s.
    pub deadline: Duration,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            allow_private: false,
            own_name: String::new(),
            exchange_port: 25,
            query_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
        }
    }
}

/// Finds the addresses of destinations. Cheap to share; caches by TTL.
pub struct Resolver {
    dns: TokioResolver,
    guard: AddressGuard,
    options: ResolverOptions,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Resolver {
    /// Fails when the system's configuration is asked for and cannot be read.
    pub fn new(options: ResolverOptions) -> Result<Self, NetError> {
        let mut builder = if options.nameservers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = options
                .nameservers
                .iter()
                .copied()
                .map(nameserver)
                .collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        builder.options_mut().timeout = options.query_timeout;
        builder.options_mut().edns0 = true;
        let guard = AddressGuard {
            allow_private: options.allow_private,
        };
        Ok(Self {
            dns: builder.build()?,
            guard,
            options,
        })
    }

    /// Which addresses may be dialled.
    pub fn guard(&self) -> AddressGuard {
        self.guard
    }

    /// The hops of a destination in the order to try them; never empty.
    ///
    /// # Cancel safety
    /// Nothing is lost but the queries under way.
    pub async fn resolve(
        &self,
        domain: &DomainName,
        route: Option<&StaticRoute>,
    ) -> Result<Vec<Hop>, ResolveError> {
        let work = async {
            match (route, domain.literal()) {
                (Some(route), _) => self.route(route).await,
                (None, Some(address)) => self.literal(address),
                (None, None) => self.exchanges(domain.as_str()).await,
            }
        };
        match tokio::time::timeout(self.options.deadline, work).await {
            Ok(result) => result,
            Err(_) => Err(ResolveError::Temporary("deadline exceeded".into())),
        }
    }

    async fn route(&self, route: &StaticRoute) -> Result<Vec<Hop>, ResolveError> {
        let port = route.effective_port();
        let hop = |host: &str, ip| Hop {
            host: host.trim_end_matches('.').to_ascii_lowercase(),
            address: SocketAddr::new(ip, port),
            implicit_tls: route.implicit_tls,
            source: HopSource::Route,
        };
        if let Some(ip) = route.address() {
            return Ok(vec![hop(&ip.to_string(), ip)]);
        }
        // A route that does not resolve is the operator's mistake or a moment's outage, never the
        // recipient's fault: temporary.
        let found =
            dns::addresses(&self.dns, &route.host)
                .await
                .map_err(|missing| match missing {
                    Missing::Temporary(text) => ResolveError::Temporary(text),
                    Missing::NoDomain | Missing::NoData => {
                        ResolveError::Temporary("the host of the route has no address".into())
                    }
                })?;
        Ok(found
            .into_iter()
            .take(MAX_ADDRESSES)
            .map(|ip| hop(&route.host, ip))
            .collect())
    }

    fn literal(&self, ip: IpAddr) -> Result<Vec<Hop>, ResolveError> {
        if !self.guard.permits(ip, HopSource::Literal) {
            return Err(ResolveError::NoRoute(
                "the address is not routable from here",
            ));
        }
        let address = SocketAddr::new(ip, self.options.exchange_port);
        Ok(vec![Hop {
            host: ip.to_string(),
            address,
            implicit_tls: false,
            source: HopSource::Literal,
        }])
    }

    async fn exchanges(&self, domain: &str) -> Result<Vec<Hop>, ResolveError> {
        let hosts = match dns::exchanges(&self.dns, domain).await {
            Ok(records) => match exchange::order(
                records,
                &self.options.own_name,
                MAX_EXCHANGES,
                &mut rand::rng(),
            ) {
                Exchanges::Null => return Err(ResolveError::NullMx),
                Exchanges::Own => return Err(ResolveError::Loop),
                Exchanges::Hosts(hosts) => hosts,
            },
            Err(Missing::NoData) => vec![domain.to_owned()], // implicit MX
            Err(Missing::NoDomain) => return Err(ResolveError::NoDomain),
            Err(Missing::Temporary(text)) => return Err(ResolveError::Temporary(text)),
        };
        let mut hops = Vec::new();
        let mut temporary = None;
        let mut refused = false;
        for host in hosts {
            match dns::addresses(&self.dns, &format!("{host}.")).await {
                Ok(found) => {
                    for ip in found {
                        if self.guard.permits(ip, HopSource::Exchange) {
                            let address = SocketAddr::new(ip, self.options.exchange_port);
                            hops.push(Hop {
                                host: host.clone(),
                                address,
                                implicit_tls: false,
                                source: HopSource::Exchange,
                            });
                        } else {
                            refused = true;
                            tracing::info!(domain, host, %ip, "address of a mail exchange is not dialled");
                        }
                    }
                }
                Err(Missing::Temporary(text)) => temporary = Some(text),
                Err(Missing::NoDomain | Missing::NoData) => {}
            }
            if hops.len() >= MAX_ADDRESSES {
                hops.truncate(MAX_ADDRESSES);
                break;
            }
        }
        match (hops.is_empty(), temporary, refused) {
            (false, _, _) => Ok(hops),
            (true, Some(text), _) => Err(ResolveError::Temporary(text)),
            (true, None, true) => Err(ResolveError::NoRoute(
                "no mail exchange has an address that is routable from here",
            )),
            (true, None, false) => Err(ResolveError::NoRoute("no mail exchange has an address")),
        }
    }
}

fn nameserver(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
        .into_iter()
        .map(|mut c| {
            c.port = address.port();
            c
        })
        .collect();
    NameServerConfig::new(address.ip(), true, connections)
}

#[cfg(test)]
mod tests;
