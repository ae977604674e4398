# SPDX-License-Identifier: BSD-3-Clause
"""The OpenAPI document against what both generations of the API were seen to have."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

SPEC = Path(__file__).resolve().parents[2] / "spec" / "mybrc.openapi.yaml"

#: (method, path) → the query parameters of the generation, of what we use of it.
ORIGINAL = {
    ("post", "/api_token_auth/"): set(),
    ("get", "/can_submit_job/{job_cost}/{user_id}/{account_id}/"): set(),
    ("get", "/jobs/"): {"page"},
    ("post", "/jobs/"): set(),
    ("put", "/jobs/{jobslurmid}/"): set(),
    ("get", "/partitions/"): {"page"},
    ("get", "/users/"): {"page"},
}
CURRENT = {
    ("post", "/api_token_auth/"): set(),
    ("get", "/can_submit_job/{job_cost}/{user_id}/{account_id}/"): set(),
    ("get", "/jobs/"): {
        "page",
        "user",
        "account",
        "jobstatus",
        "partition",
        "min_amount",
        "max_amount",
        "start_time",
        "end_time",
    },
    ("post", "/jobs/"): set(),
    ("get", "/jobs/{jobslurmid}/"): set(),
    ("put", "/jobs/{jobslurmid}/"): set(),
    ("get", "/users/"): {"page", "username"},
    ("get", "/users/{id}/"): set(),
    ("get", "/projects/"): {"page", "name", "status", "allowance_type"},
    ("get", "/projects/{id}/"): set(),
    ("get", "/allocations/"): {"page", "project", "resources"},
    ("get", "/allocations/{id}/"): set(),
    ("get", "/allocations/{id}/attributes/"): {"page", "type"},
    ("get", "/allocation_users/"): {"page", "user", "project", "resources"},
    ("get", "/allocation_users/{id}/"): set(),
    ("get", "/allocation_users/{id}/attributes/"): {"page", "type"},
}
GENERATIONS = {"original": ORIGINAL, "current": CURRENT}

#: The same in both: name → JSON type.
JOB_FIELDS = {
    "jobslurmid": "string",
    "submitdate": "string",
    "startdate": "string",
    "enddate": "string",
    "userid": "string",
    "accountid": "string",
    "amount": "string",
    "jobstatus": "string",
    "partition": "string",
    "qos": "string",
    "nodes": "array",
    "num_cpus": "integer",
    "num_req_nodes": "integer",
    "num_alloc_nodes": "integer",
    "raw_time": "number",
    "cpu_time": "number",
}
JOB_LONGEST = {"jobslurmid": 150, "jobstatus": 50, "partition": 50, "qos": 50}

FIELDS = {
    "Node": {"name"},
    "Credentials": {"username", "password"},
    "TokenAnswer": {"token", "error"},
    "SubmitAnswer": {"success", "message"},
    "JobPage": {"count", "next", "previous", "results", "total_amount", "total_cpu_time"},
    "Partition": {"name", "shared", "num_nodes", "num_cores", "su_per_core_hour"},
    "User": {"id", "username", "first_name", "last_name", "email", "last_login", "profile"},
    "Project": {
        "id",
        "created",
        "modified",
        "name",
        "title",
        "description",
        "force_review",
        "requires_review",
        "field_of_science",
        "status",
    },
    "Allocation": {
        "id",
        "project",
        "resources",
        "status",
        "quantity",
        "start_date",
        "end_date",
        "justification",
        "description",
        "is_locked",
    },
    "AllocationAttribute": {"id", "allocation_attribute_type", "allocation", "value", "usage"},
    "AllocationAttributeUsage": {"allocation_attribute", "value"},
    "AllocationUser": {"id", "allocation", "user", "user_id", "project", "status"},
    "AllocationUserAttribute": {
        "id",
        "allocation_attribute_type",
        "allocation",
        "allocation_user",
        "value",
        "usage",
    },
    "AllocationUserAttributeUsage": {"allocation_user_attribute", "value"},
    "ErrorDetail": {"detail"},
    "ValidationErrors": {"non_field_errors", "detail"},
}

#: Service units, wherever they are; all are decimals in text, but for the one total.
MONEY = {
    ("Job", "amount"): "string",
    ("Partition", "su_per_core_hour"): "string",
    ("AllocationAttribute", "value"): "string",
    ("AllocationAttributeUsage", "value"): "string",
    ("AllocationUserAttribute", "value"): "string",
    ("AllocationUserAttributeUsage", "value"): "string",
    ("JobPage", "total_amount"): "number",
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(SPEC)
    return loaded


def resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        target: Any = document
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        node = target
    return node


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], list[Any]]]:
    for path, item in document["paths"].items():
        for method in ("get", "post", "put", "patch", "delete"):
            if method in item:
                operation = item[method]
                parameters = item.get("parameters", []) + operation.get("parameters", [])
                yield method, path, operation, [resolve(document, one) for one in parameters]


def schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"][name]
    return found


@pytest.mark.parametrize("generation", ["original", "current"])
def test_the_operations_of_a_generation_are_there_and_no_others(
    document: dict[str, Any], generation: str
) -> None:
    described = {
        (method, path)
        for method, path, operation, _ in operations(document)
        if generation in operation["x-generations"]
    }
    assert described == set(GENERATIONS[generation])


#: What the portal ignores, as it does every parameter that it does not know.
BUNDLED_BANKS_OWN = {("get", "/jobs/"): {"page_size"}}


def test_the_query_parameters_are_those_of_the_generations(document: dict[str, Any]) -> None:
    for method, path, _, parameters in operations(document):
        names = {one["name"] for one in parameters if one["in"] == "query"}
        key = (method, path)
        known = ORIGINAL.get(key, set()) | CURRENT.get(key, set())
        assert names == known | BUNDLED_BANKS_OWN.get(key, set()), key


def test_every_segment_of_a_path_is_described(document: dict[str, Any]) -> None:
    for _, path, _, parameters in operations(document):
        in_path = {one["name"] for one in parameters if one["in"] == "path" and one["required"]}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        assert path.endswith("/"), "without it the portal redirects"


def test_a_job_has_the_sixteen_fields_of_the_api(document: dict[str, Any]) -> None:
    job = schema(document, "Job")
    assert {name: one["type"] for name, one in job["properties"].items()} == JOB_FIELDS
    assert len(job["properties"]) == 16
    assert set(job["required"]) == {"jobslurmid", "userid", "accountid"}
    longest = {n: p["maxLength"] for n, p in job["properties"].items() if "maxLength" in p}
    assert longest == JOB_LONGEST
    assert schema(document, "Node")["properties"]["name"]["maxLength"] == 30
    never_null = {name for name, one in job["properties"].items() if not one.get("nullable")}
    assert never_null == {"jobslurmid", "userid", "accountid", "amount", "nodes"}
    # The original allowed digits alone, today's portal does not say so any more.
    assert "pattern" not in job["properties"]["userid"]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_fields_of_a_schema_are_those_of_the_api(document: dict[str, Any], name: str) -> None:
    assert set(schema(document, name)["properties"]) == FIELDS[name]


def test_service_units_are_decimals_in_text(document: dict[str, Any]) -> None:
    for (name, key), kind in MONEY.items():
        assert schema(document, name)["properties"][key]["type"] == kind, (name, key)
    for _, _, _, parameters in operations(document):
        for one in parameters:
            if one["name"] in ("job_cost", "min_amount", "max_amount"):
                assert one["schema"] == {"type": "string", "format": "decimal"}


def test_a_page_needs_only_what_both_generations_send(document: dict[str, Any]) -> None:
    pages = [name for name in document["components"]["schemas"] if name.endswith("Page")]
    assert len(pages) == 8
    for name in pages:
        assert set(schema(document, name)["required"]) == {"count", "results"}


def test_what_every_operation_may_fail_with_is_described(document: dict[str, Any]) -> None:
    for method, path, operation, _ in operations(document):
        responses = operation["responses"]
        expected = {"500", "503"}
        if path != "/api_token_auth/":
            expected |= {"401", "403", "404"}
        if method in ("post", "put") or path.startswith("/can_submit_job/"):
            expected |= {"400"}
        assert expected <= set(responses), (method, path)
        assert "text/html" in resolve(document, responses["503"])["content"]
        assert "text/html" in resolve(document, responses["500"])["content"]


def test_a_token_is_needed_for_all_but_asking_for_one(document: dict[str, Any]) -> None:
    for _, path, operation, _ in operations(document):
        expected: list[Any] = [] if path == "/api_token_auth/" else [{"Token": []}]
        assert operation["security"] == expected
    scheme = document["components"]["securitySchemes"]["Token"]
    assert (scheme["in"], scheme["name"]) == ("header", "Authorization")


def test_a_request_that_was_not_understood_has_three_shapes(document: dict[str, Any]) -> None:
    invalid = document["components"]["responses"]["Invalid"]
    shapes = [
        resolve(document, one) for one in invalid["content"]["application/json"]["schema"]["oneOf"]
    ]
    assert [shape["type"] for shape in shapes] == ["object", "array"]
    assert shapes[0]["additionalProperties"] == {}
    assert "non_field_errors" in shapes[0]["properties"]
    path = "/can_submit_job/{job_cost}/{user_id}/{account_id}/"
    refused = document["paths"][path]["get"]["responses"]["400"]
    assert refused["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/SubmitAnswer"
    }


def test_the_client_has_every_operation_with_its_parameters(document: dict[str, Any]) -> None:
    for _, _, operation, parameters in operations(document):
        name = f"mybrc_client.api.{operation['tags'][0]}.{operation['operationId']}"
        arguments = set(inspect.signature(importlib.import_module(name).sync_detailed).parameters)
        described = {"type_" if one["name"] == "type" else one["name"] for one in parameters}
        if "requestBody" in operation:
            described.add("body")
        assert arguments == described | {"client"}, name


def test_the_client_has_every_field_of_every_schema(document: dict[str, Any]) -> None:
    models = importlib.import_module("mybrc_client.models")
    for name, one in document["components"]["schemas"].items():
        if one["type"] == "object":
            fields = {attribute.name for attribute in getattr(models, name).__attrs_attrs__}
            described = {"next_" if key == "next" else key for key in one["properties"]}
            assert described == fields - {"additional_properties"}, name
