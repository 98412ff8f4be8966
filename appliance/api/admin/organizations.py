"""/v1/admin/organizations."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import FromPath

from appliance.accounts.organizations import COLUMNS, Organization, Organizations
from appliance.api.answers import created, json_answer, listed, no_content
from appliance.api.authentication import actor_of
from appliance.api.body import read_change, read_json
from appliance.api.fields import Name, identifier, trimmed
from appliance.api.paging import page_of


class NewOrganization(msgspec.Struct):
    """The body of POST."""

    name: Name


class OrganizationChange(msgspec.Struct):
    """The body of PATCH; null keeps."""

    name: Name | None = None


@post("/admin/organizations", operation_id="createOrganization", tags=["Admin"], access="admin")
async def create_organization(request: Request[Any, Any, State]) -> Response[bytes]:
    """Make an organization."""
    body = await read_json(request, NewOrganization)
    return created(
        {"id": await _organizations(request).create(actor_of(request), trimmed("name", body.name))}
    )


@get("/admin/organizations", operation_id="listOrganizations", tags=["Admin"], access="admin")
async def list_organizations(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the organizations."""
    page = page_of(request, tuple(COLUMNS))
    return listed([_shown(each) for each in await _organizations(request).list(page.clause(COLUMNS))])


@get(
    "/admin/organizations/{organization:str}", operation_id="getOrganization", tags=["Admin"], access="admin"
)
async def get_organization(request: Request[Any, Any, State], organization: FromPath[str]) -> Response[bytes]:
    """Describe an organization."""
    found = await _organizations(request).get(identifier("organization", organization))
    return json_answer(_shown(found))


@patch(
    "/admin/organizations/{organization:str}",
    operation_id="updateOrganization",
    tags=["Admin"],
    access="admin",
)
async def update_organization(
    request: Request[Any, Any, State], organization: FromPath[str]
) -> Response[None]:
    """Rename an organization."""
    organization_id, body = await read_change(request, "organization", organization, OrganizationChange)
    name = None if body.name is None else trimmed("name", body.name)
    await _organizations(request).rename(actor_of(request), organization_id, name)
    # Routers name their owner's organization.
    await request.app.state.gateway.reload()
    return no_content()


@delete(
    "/admin/organizations/{organization:str}",
    operation_id="deleteOrganization",
    tags=["Admin"],
    access="admin",
)
async def delete_organization(
    request: Request[Any, Any, State], organization: FromPath[str]
) -> Response[None]:
    """Remove an organization without users."""
    await _organizations(request).delete(actor_of(request), identifier("organization", organization))
    return no_content()


def _organizations(request: Request[Any, Any, State]) -> Organizations:
    return Organizations(request.app.state.database, request.app.state.audit)


def _shown(organization: Organization) -> dict[str, Any]:
    return {
        "object": "organization",
        "id": organization.id,
        "name": organization.name,
        "users": organization.users,
        "created": organization.created_at // 1000,
        "updated": organization.updated_at // 1000,
    }
