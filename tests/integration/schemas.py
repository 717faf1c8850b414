"""JSON schemas for tests of structured output: some by hand, any number by chance.
All of them are what a server must hold an answer to."""

import random

HAND_PICKED = [
    # A record, as most are.
    {"type": "object",
     "properties": {"name": {"type": "string", "maxLength": 30},
                    "age": {"type": "integer", "minimum": 0, "maximum": 130},
                    "email": {"type": "string",
                              "pattern": "^[a-z]{1,10}@[a-z]{1,10}\\.org$"},
                    "happy": {"type": "boolean"}},
     "required": ["name", "age", "email", "happy"],
     "additionalProperties": False},
    # Records within records.
    {"type": "object",
     "properties": {
         "order": {"type": "object",
                   "properties": {
                       "id": {"type": "integer", "minimum": 1, "maximum": 999},
                       "lines": {"type": "array", "minItems": 1, "maxItems": 3,
                                 "items": {"type": "object",
                                           "properties": {
                                               "sku": {"enum": ["A-1", "B-2"]},
                                               "count": {"type": "integer",
                                                         "minimum": 1,
                                                         "maximum": 9}},
                                           "required": ["sku", "count"]}}},
                   "required": ["id", "lines"]}},
     "required": ["order"]},
    # References, one to itself.
    {"$defs": {"tree": {"type": "object",
                        "properties": {
                            "value": {"type": "integer", "minimum": 0,
                                      "maximum": 9},
                            "children": {"type": "array", "maxItems": 2,
                                         "items": {"$ref": "#/$defs/tree"}}},
                        "required": ["value", "children"],
                        "additionalProperties": False}},
     "$ref": "#/$defs/tree"},
    {"type": "object", "definitions": {"point": {
        "type": "array", "prefixItems": [{"type": "number"}] * 2, "items": False,
        "minItems": 2, "maxItems": 2}},
     "properties": {"from": {"$ref": "#/definitions/point"},
                    "to": {"$ref": "#/definitions/point"}},
     "required": ["from", "to"]},
    # Values of each kind; other scripts; what JSON must escape.
    {"enum": ["ja", "nein", "vielleicht", None, 3, True]},
    {"const": {"a": [1, "\u00fc", None]}},
    {"type": "object",
     "properties": {"\u540d\u524d": {"enum": ["\u592a\u90ce", "\u82b1\u5b50"]},
                    "\u044f\u0437\u044b\u043a": {"const": "\u0440\u0443\u0441"},
                    "mood \U0001F600": {"enum": ["\U0001F680", "\u00e9\u00e8"]},
                    "quote\"back\\slash": {"enum": ["tab\t", "line\n", "\"\\/"]}},
     "required": ["\u540d\u524d", "\u044f\u0437\u044b\u043a", "mood \U0001F600",
                  "quote\"back\\slash"]},
    {"type": "string", "pattern": "^[\u4e00-\u9fff]{2,4}$"},
    {"type": "string", "pattern": "^\\d{4}-(0[1-9]|1[0-2])-([0-2]\\d|3[01])$"},
    {"type": "string", "pattern": "^(\\([0-9]{3}\\))?[0-9]{3}-[0-9]{4}$"},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 50},
               {"type": "null"}]},
    {"type": ["boolean", "null"]},
    {"type": "number", "minimum": -1, "maximum": 1},
    {"type": "array", "items": {"anyOf": [{"type": "boolean"},
                                          {"enum": ["x", "y"]}]},
     "minItems": 2, "maxItems": 5},
    # Parts that may be left out.
    {"type": "object",
     "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99}
                    for name in "abcdefgh"},
     "required": ["c"], "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"},
     "minProperties": 1, "maxProperties": 3},
    {"title": "Step", "description": "of a proof", "type": "object",
     "properties": {"steps": {"type": "array", "maxItems": 2, "items": {
         "type": "object",
         "properties": {"explanation": {"type": "string", "maxLength": 40},
                        "output": {"type": "string", "maxLength": 20}},
         "required": ["explanation", "output"],
         "additionalProperties": False}},
         "final_answer": {"type": "string", "maxLength": 20, "default": ""}},
     "required": ["steps", "final_answer"], "additionalProperties": False},
]

WORDS = ["name", "city", "price", "tags", "note", "unit", "date", "size", "owner",
         "stra\u00dfe", "\u5024", "\u0446\u0435\u043d\u0430", "a b", "x-y", "$id_"]


def leaf(rng):
    kind = rng.randrange(9)
    if kind == 0:
        low = rng.randrange(-1000, 1000)
        return {"type": "integer", "minimum": low,
                "maximum": low + rng.randrange(1000)}
    if kind == 1:
        return {"type": "number"}
    if kind == 2:
        return {"type": "boolean"}
    if kind == 3:
        return {"enum": rng.sample([1, 2.5, None, True, "red", "gr\u00fcn", "\u9752",
                                    "a\"b", ""], rng.randrange(1, 5))}
    if kind == 4:
        return {"type": "string", "maxLength": rng.randrange(1, 30)}
    if kind == 5:
        return {"type": "string", "pattern": rng.choice([
            "^[A-Z]{3}-[0-9]{1,4}$", "^(foo|bar)+$", "^[^\\s]{1,8}$",
            "^#[0-9a-f]{6}$", "^[\u0430-\u044f]{1,5}$", "^v\\d+\\.\\d+$"])}
    if kind == 6:
        return {"type": ["integer", "null"]}
    if kind == 7:
        return {"type": "string", "format": rng.choice(["date", "uuid", "ipv4",
                                                        "time"])}
    return {"const": rng.choice([0, "k", None, [1], {"z": "\u00e4"}])}


def schema(rng, depth=0):
    """A random one. Those that it refers to are its own."""
    kind = rng.randrange(6) if depth < 3 else 5
    if kind <= 2:
        names = rng.sample(WORDS, rng.randrange(1, 5))
        out = {"type": "object",
               "properties": {name: schema(rng, depth + 1) for name in names},
               "required": [name for name in names if rng.random() < 0.7]}
        if rng.random() < 0.7:
            out["additionalProperties"] = False
        return out
    if kind == 3:
        return {"type": "array", "items": schema(rng, depth + 1),
                "minItems": rng.randrange(2), "maxItems": rng.randrange(2, 4)}
    if kind == 4:
        return {"anyOf": [schema(rng, depth + 1), leaf(rng)]}
    return leaf(rng)


def generated(rng):
    out = schema(rng)
    if rng.random() < 0.3:
        shared = schema(rng, depth=2)
        out = {"$defs": {"shared": shared}, "type": "object",
               "properties": {"first": {"$ref": "#/$defs/shared"}, "then": out,
                              "last": {"$ref": "#/$defs/shared"}},
               "required": ["first", "last"]}
    return out


def some(count, seed):
    rng = random.Random(seed)
    out = HAND_PICKED[:count]
    while len(out) < count:
        out.append(generated(rng))
    return out
