"""The combinations of values that are rendered: the options of a release, and rows of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.chart.helm import Render, merged, template, value_files
from tests.chart.pairs import Pair, combinations

Values = dict[str, Any]
ROLES = ("gateway", "verifier", "drafter")


def _roles(values: Values) -> Values:
    return dict.fromkeys(ROLES, values)


def _gpu(resource: str) -> Values:
    gpu = {"gpu": {"resource": resource, "count": 1}, "runtimeClassName": "nvidia"}
    return {"verifier": gpu, "drafter": gpu}


def _from(namespace: str) -> list[Values]:
    labels = {"kubernetes.io/metadata.name": namespace}
    return [{"namespaceSelector": {"matchLabels": labels}}]


# Option -> setting -> values. Names of objects that others give begin with "given-".
OPTIONS: dict[str, dict[str, Values]] = {
    "device": {
        "cpu": {},
        "gpu": _gpu("nvidia.com/gpu"),
        "mig": _gpu("nvidia.com/mig-3g.40gb"),
        "claim": {
            role: {"gpu": {"claimTemplate": "given-gpu"}} for role in ("verifier", "drafter")
        },
    },
    "redis": {
        "bundled": {},
        "external": {
            "redis": {
                "mode": "external",
                "external": {
                    "url": "rediss://:$(REDIS_PASSWORD)@redis.example.org:6379/0",
                    "existingSecret": "given-redis",
                },
            }
        },
        "external url": {
            "redis": {"mode": "external", "external": {"existingSecret": "given-redis"}}
        },
        "none": {"redis": {"mode": "none"}},
    },
    "tls": {
        "off": {},
        "secret": {"tls": {"enabled": True, "existingSecret": "given-tls"}},
        "cert-manager": {
            "tls": {
                "enabled": True,
                "certManager": {"enabled": True, "issuerRef": {"name": "given-issuer"}},
            }
        },
    },
    "discovery": {"kubernetes": {}, "dns": {"discovery": {"mode": "dns"}}},
    "cache": {
        "ephemeral": {},
        "per pod": {"model": {"cache": {"type": "perPod"}}},
        "shared": {"model": {"cache": {"type": "shared"}, "download": {"job": {"enabled": True}}}},
        "claim": {"model": {"cache": {"type": "shared", "existingClaim": "given-models"}}},
        "path": {
            "model": {
                "path": "/models/llama",
                "cache": {"type": "shared", "existingClaim": "given-models"},
            }
        },
    },
    "plan": {
        "auto": {},
        "adaptive": {"drafter": {"layerPlan": {"source": "adaptive"}}},
        "config map": {
            "drafter": {"layerPlan": {"source": "configMap", "configMap": {"name": "given-plan"}}}
        },
        "tune": {
            "tune": {"enabled": True},
            "drafter": {"layerPlan": {"source": "tune"}},
        },
    },
    "shards": {"1": {}, "2": {"drafter": {"shards": 2}}, "off": {"drafter": {"enabled": False}}},
    "replicas": {
        "one": {},
        "three": _roles({"replicas": 3}),
        "hpa": _roles({"autoscaling": {"enabled": True}}),
        "keda": {
            **_roles({"keda": {"enabled": True}}),
            "monitoring": {"prometheusAddress": "http://prometheus.monitoring:9090"},
        },
    },
    "monitoring": {
        "off": {},
        "on": {
            "monitoring": {
                name: {"enabled": True}
                for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
            },
            "networkPolicy": {"metricsFrom": _from("monitoring")},
        },
    },
    "routes": {
        "none": {},
        "ingress": {
            "gateway": {
                "ingress": {
                    "enabled": True,
                    "hosts": ["llm.example.org"],
                    "grpcHosts": ["grpc.example.org"],
                    "tlsSecret": "given-edge",
                }
            },
            "networkPolicy": {"gatewayFrom": _from("ingress-nginx")},
        },
        "gateway api": {
            "gateway": {
                name: {"enabled": True, "parentRefs": [{"name": "given-gateway"}]}
                for name in ("httpRoute", "grpcRoute")
            },
            "networkPolicy": {"gatewayFrom": _from("envoy-gateway-system")},
        },
    },
    "addresses": {"ipv4": {}, "ipv6": {"bindAddress": "::"}},
    "accounts": {
        "made": {},
        "given": {
            role: {"serviceAccount": {"create": False, "name": f"given-{role}"}} for role in ROLES
        },
    },
    "policies": {"on": {}, "off": {"networkPolicy": {"enabled": False}}},
    "keys": {
        "generated": {},
        "given": {"gateway": {"apiKeys": {"existingSecret": "given-keys"}}},
    },
    "hub": {
        "open": {},
        "token": {"model": {"hfToken": {"existingSecret": "given-hub"}}},
    },
    "traces": {
        "off": {},
        "on": {"telemetry": {"otlpEndpoint": "http://collector.observability:4317"}},
    },
}


def _pair(one: str, a: str, two: str, b: str) -> Pair:
    return frozenset({(one, a), (two, b)})


# What the chart refuses, each with a message (test_refusals.py).
REFUSED = (
    _pair("plan", "adaptive", "shards", "2"),
    _pair("redis", "none", "replicas", "three"),
    _pair("redis", "none", "replicas", "hpa"),
    _pair("redis", "none", "replicas", "keda"),
    _pair("shards", "2", "replicas", "hpa"),
    _pair("shards", "2", "replicas", "keda"),
)


# Who stands where around a release: with these no rule of a NetworkPolicy has to say "anywhere".
SURROUNDINGS: Values = {
    "networkPolicy": {
        "gatewayFrom": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}},
                "podSelector": {"matchLabels": {"app": "chat"}},
            }
        ],
        "metricsFrom": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        ],
        "apiServer": {"cidrs": ["10.96.0.1/32"]},
        "modelHub": {"cidrs": ["198.51.100.0/24"]},
        "externalRedis": {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}]},
        "otlp": {
            "to": [
                {
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": "observability"}
                    }
                }
            ]
        },
    }
}


def rows() -> list[dict[str, str]]:
    return combinations({name: list(settings) for name, settings in OPTIONS.items()}, REFUSED)


def values_of(row: Mapping[str, str]) -> Values:
    return merged(*(OPTIONS[name][setting] for name, setting in row.items()))


def render_of(row: Mapping[str, str]) -> Render:
    """A release with the row's options, whose surroundings are known."""
    return template(merged(values_of(row), SURROUNDINGS))


def label_of(row: Mapping[str, str]) -> str:
    """What differs from the defaults."""
    defaults = {name: next(iter(settings)) for name, settings in OPTIONS.items()}
    other = [f"{name} {value}" for name, value in row.items() if value != defaults[name]]
    return ", ".join(other) or "defaults"


def renders() -> dict[str, Render]:
    """Defaults, each ready value file, and the rows; by what they are."""
    made = {"defaults": template()}
    made |= {name: template(files=[path]) for name, path in value_files().items()}
    made |= {label_of(row): render_of(row) for row in rows()}
    return made
