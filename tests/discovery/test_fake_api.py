"""The double of the API server answers the official client as a real one does."""

from __future__ import annotations

import json
import math

import pytest
from kubernetes import client, config, watch

from slipstream.discovery.fake_selectors import selected
from slipstream.discovery.fakes import FakeApiServer, endpoint, endpoint_slice


@pytest.fixture
def api():
    with FakeApiServer() as server:
        yield server


@pytest.fixture
def link(api):
    with config.new_client_from_config(str(api.kubeconfig)) as made:
        yield made


def config_map(name, **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def refusal(call, *arguments, **fields):
    with pytest.raises(client.ApiException) as failure:
        call(*arguments, _request_timeout=20, **fields)
    return failure.value


def test_objects_come_and_go(api, link):
    """Create, read, update, merge, delete; what is wrong with each is said by its status."""
    core = client.CoreV1Api(link)
    made = core.create_namespaced_config_map("ns", config_map("a", x="1"))
    assert (made.metadata.namespace, made.data) == ("ns", {"x": "1"})
    assert refusal(core.create_namespaced_config_map, "ns", config_map("a")).status == 409
    core.patch_namespaced_config_map("a", "ns", {"data": {"y": "2"}})
    there = core.read_namespaced_config_map("a", "ns")
    assert there.data == {"x": "1", "y": "2"}
    assert there.metadata.uid == made.metadata.uid
    stale = {**config_map("a"), "metadata": {"name": "a", "resourceVersion": "1"}}
    assert refusal(core.replace_namespaced_config_map, "a", "ns", stale).status == 409
    core.delete_namespaced_config_map("a", "ns")
    gone = refusal(core.read_namespaced_config_map, "a", "ns")
    assert (gone.status, "NotFound" in gone.body) == (404, True)
    assert api.get("ConfigMap", "ns", "a") is None


def test_server_side_apply(api, link):
    """It creates, takes away what its manager does not apply any more, and tells conflicts unless
    forced."""
    core = client.CoreV1Api(link)

    def apply(manager, force=False, **data):
        return core.patch_namespaced_config_map(
            "p", "ns", config_map("p", **data), field_manager=manager, force=force,
            _content_type="application/apply-patch+yaml", _request_timeout=20,
        )  # fmt: skip

    assert apply("one", a="1", b="1").data == {"a": "1", "b": "1"}
    assert apply("two", c="1").data == {"a": "1", "b": "1", "c": "1"}
    assert apply("one", a="2").data == {"a": "2", "c": "1"}
    with pytest.raises(client.ApiException, match=r"conflict with .*one.*data\.a") as failure:
        apply("two", a="3")
    assert failure.value.status == 409
    assert apply("two", force=True, a="3").data == {"a": "3"}
    assert api.get("configmaps", "ns", "p")["data"] == {"a": "3"}


@pytest.mark.parametrize(
    ("labels", "fields", "found"),
    [
        ("a=1", "", True), ("a==2", "", False), ("a!=2", "", True), ("c!=2", "", True),
        ("a in (1, 2),b", "", True), ("a notin (1,2)", "", False), ("c notin (1)", "", True),
        ("!c", "", True), ("!a", "", False), ("c", "", False),
        ("", "metadata.name=x", True), ("", "metadata.name!=x", False), ("a=1", "kind=Y", False),
    ],
)  # fmt: skip
def test_selectors(labels, fields, found):
    """Each form, also where the label is not there, and two of them."""
    one = {"kind": "X", "metadata": {"name": "x", "labels": {"a": "1", "b": "2"}}}
    assert selected(labels, fields)(one) is found


def test_a_watch_tells_what_changes_for_it(api, link):
    """From a list's version: what comes, changes and goes, in its namespace and of its labels."""
    discovery = client.DiscoveryV1Api(link)
    api.put(endpoint_slice("v", ["10.0.0.1"]))
    listed = discovery.list_namespaced_endpoint_slice("default")
    assert [one.endpoints[0].addresses for one in listed.items] == [["10.0.0.1"]]
    api.put(endpoint_slice("v", [endpoint("10.0.0.1", terminating=True)]))
    api.put(endpoint_slice("other", []))
    api.put(endpoint_slice("v", [], namespace="elsewhere"))
    api.put(endpoint_slice("v", [], name="second"))
    api.put({**endpoint_slice("moved", []), "metadata": {"name": "second"}})
    api.delete("EndpointSlice", "default", "v-abcde")
    events = watch.Watch().stream(
        discovery.list_namespaced_endpoint_slice,
        "default",
        label_selector="kubernetes.io/service-name=v",
        resource_version=listed.metadata.resource_version,
        timeout_seconds=1,
    )
    told = [(event["type"], event["object"].metadata.name) for event in events]
    assert told == [
        ("MODIFIED", "v-abcde"), ("ADDED", "second"), ("DELETED", "second"), ("DELETED", "v-abcde"),
    ]  # fmt: skip


@pytest.mark.parametrize("as_status", [True, False])
def test_what_is_expired(api, link, as_status):
    """410, as the status or in the stream; a version that is new is none."""
    core = client.CoreV1Api(link)
    old = core.list_namespaced_pod("default").metadata.resource_version
    api.expire(as_status=as_status)

    def watched(version):
        events = watch.Watch().stream(
            core.list_namespaced_pod, "default", resource_version=version, timeout_seconds=1
        )
        return list(events)

    with pytest.raises(client.ApiException, match="too old resource version") as failure:
        watched(old)
    assert failure.value.status == 410
    assert watched(core.list_namespaced_pod("default").metadata.resource_version) == []


def test_rights(api, link):
    """What is forbidden gets 403 with the real words, reviews say the same, also of other users;
    what is allowed again works; another token is 401."""
    core, reviews = client.CoreV1Api(link), client.AuthorizationV1Api(link)
    api.forbid("list", "pods")
    api.forbid("*", "secrets", user="somebody")
    refused = refusal(core.list_namespaced_pod, "default")
    assert refused.status == 403
    words = 'cannot list resource "pods" in API group "" in the namespace "default"'
    assert words in json.loads(refused.body)["message"]

    def review(verb, resource, user=""):
        what = {"verb": verb, "resource": resource, "namespace": "default"}
        if user:
            body = {"spec": {"user": user, "resourceAttributes": what}}
            return reviews.create_subject_access_review(body).status.allowed
        body = {"spec": {"resourceAttributes": what}}
        return reviews.create_self_subject_access_review(body).status.allowed

    assert not review("list", "pods")
    assert review("get", "pods")
    assert review("get", "secrets")
    assert not review("get", "secrets", "somebody")
    api.allow("list", "pods")
    assert review("list", "pods")
    assert core.list_namespaced_pod("default").items == []
    api.token = "another"
    assert refusal(core.list_namespaced_pod, "default").status == 401


def test_trouble(api, link):
    """It fails, is slow, says nothing, cuts a watch, is gone, and is back at the same port."""
    core = client.CoreV1Api(link)
    link.rest_client.pool_manager.connection_pool_kw["retries"] = False
    api.failing = 503
    assert refusal(core.list_namespaced_pod, "default").status == 503
    api.failing, api.delay = 0, math.inf
    with pytest.raises(Exception, match="timed out"):
        core.list_namespaced_pod("default", _request_timeout=0.2)
    api.delay = 0
    api.wake()
    api.put({"kind": "Pod", "metadata": {"name": "p"}})
    events = watch.Watch().stream(core.list_namespaced_pod, "default", timeout_seconds=60)
    # Once it has told something, it is there to be cut.
    assert next(events)["type"] == "ADDED"
    api.disconnect()
    with pytest.raises(Exception, match="ended prematurely"):
        list(events)
    api.delete("Pod", "default", "p")
    api.stop()
    with pytest.raises(Exception, match="refused"):
        core.list_namespaced_pod("default", _request_timeout=20)
    api.start()
    assert core.list_namespaced_pod("default", _request_timeout=20).items == []
    assert api.requests[-1].verb == "list"
