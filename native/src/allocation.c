// SPDX-License-Identifier: Apache-2.0
// The policies are described in deviceplugin/allocation.py, and tests/oracles/allocation.py says the same in Python.

#include "allocation.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

// How many sets of NUMA nodes are looked at before the search settles for a set that merely cannot lose a node: all
// there are up to 16 nodes.
#define SETS_LIMIT 65536

// What it costs to take a slot from a unit, when packing: nothing, one more unit, or one more unit that was wholly
// free.
enum tier { OURS, IN_USE, WHOLE };

struct unit {
    uint64_t nodes;
    uint32_t number;
    uint32_t free;
    uint32_t used;  // slots that are somebody else's
    uint32_t ours;
    uint32_t next;  // where in table->members the search for a free slot goes on
};

// Units that are all alike.
struct group {
    uint64_t nodes;
    enum tier tier;
    uint32_t free;
    size_t count;
};

struct choice {
    const struct allocation_table* table;
    uint8_t* state;
    uint32_t* chosen;
    size_t count;
    struct unit* units;  // those with a free slot
    size_t unit_count;
    struct group* groups;
    uint64_t near;  // the nodes of the units that the container has slots on already
};

// What a set of nodes would give. Smaller is better, the first field before the second.
struct cost {
    size_t opened;  // wholly free units that lose a slot
    size_t units;
};

static enum tier tier_of(const struct unit* unit) { return unit->ours ? OURS : unit->used ? IN_USE : WHOLE; }

static void take(struct choice* c, struct unit* unit, size_t count) {
    for (; count; unit->next++) {
        uint32_t slot = c->table->members[unit->next];
        if (c->state[slot] != ALLOCATION_FREE) continue;
        c->state[slot] = ALLOCATION_OURS;
        c->chosen[c->count++] = slot;
        unit->free--;
        unit->ours++;
        count--;
    }
    c->near |= unit->nodes;
}

// How many units, the largest first, make up `need`; `total` becomes what they hold. Groups of one tier come with the
// largest units first.
static size_t units_for(const struct group* groups, size_t count, enum tier tier, uint64_t nodes, size_t need,
                        size_t* total) {
    size_t units = 0;
    *total = 0;
    for (size_t i = 0; i < count && *total < need; i++) {
        if (groups[i].tier != tier || !(groups[i].nodes & nodes)) continue;
        size_t wanted = (need - *total + groups[i].free - 1) / groups[i].free;
        if (wanted > groups[i].count) wanted = groups[i].count;
        units += wanted;
        *total += wanted * groups[i].free;
    }
    return units;
}

static bool cost_of(const struct group* groups, size_t count, uint64_t nodes, size_t need, struct cost* cost,
                    size_t* left) {
    size_t ours = 0, in_use = 0, whole = 0, fresh = 0, ignored;
    for (size_t i = 0; i < count; i++) {
        if (!(groups[i].nodes & nodes)) continue;
        size_t slots = groups[i].free * groups[i].count;
        if (groups[i].tier == OURS) ours += slots;
        if (groups[i].tier == IN_USE) in_use += slots;
        if (groups[i].tier == WHOLE) whole += slots;
    }
    if (ours + in_use + whole < need) return false;
    *left = ours + in_use + whole - need;
    need = need > ours ? need - ours : 0;
    cost->opened = units_for(groups, count, WHOLE, nodes, need > in_use ? need - in_use : 0, &fresh);
    cost->units = cost->opened + units_for(groups, count, IN_USE, nodes, need > fresh ? need - fresh : 0, &ignored);
    return true;
}

static bool reaches(const struct group* groups, size_t count, uint64_t nodes, size_t need, struct cost best,
                    size_t* left) {
    struct cost cost;
    return cost_of(groups, count, nodes, need, &cost, left) && cost.opened == best.opened && cost.units == best.units;
}

// The fewest nodes, beyond the near ones, from which `need` slots can be had at the cost that all nodes together allow.
// Of several such sets: one without the unplaced, then the one with the fewest slots left over, then the lowest. Only
// counts as far as the `count` groups say.
static uint64_t fewest_nodes(const struct choice* c, size_t count, size_t need) {
    uint64_t bits[64], all = 0;
    size_t bit_count = 0, left, seen = 0;
    struct cost best;
    for (size_t i = 0; i < count; i++) all |= c->groups[i].nodes;
    all &= ~c->near;
    for (uint64_t rest = all; rest; rest &= rest - 1) bits[bit_count++] = rest & -rest;
    if (!cost_of(c->groups, count, all | c->near, need, &best, &left)) return all | c->near;

    for (size_t size = 0; size < bit_count; size++) {
        // The next `size` of the bits, in ascending order of the set's value: index[] holds which.
        size_t index[64], best_left = SIZE_MAX;
        uint64_t found = 0;
        bool any = false;
        size_t sets = 1;
        for (size_t k = 0; k < size && sets <= SETS_LIMIT; k++) sets = sets * (bit_count - k) / (k + 1);
        seen += sets;
        if (seen > SETS_LIMIT) break;
        for (size_t k = 0; k < size; k++) index[k] = k;
        while (true) {
            uint64_t set = c->near;
            for (size_t k = 0; k < size; k++) set |= bits[index[k]];
            if (reaches(c->groups, count, set, need, best, &left)) {
                // The unplaced have the highest bit: a set without them comes before those with them, and those must
                // not take its place.
                bool alike = !((set ^ found) & c->table->unplaced);
                if (!any || (alike && left < best_left)) {
                    any = true;
                    found = set;
                    best_left = left;
                }
            }
            size_t k = 0;
            while (k < size && index[k] + 1 == (k + 1 < size ? index[k + 1] : bit_count)) k++;
            if (k == size) break;
            index[k]++;
            for (size_t below = 0; below < k; below++) index[below] = below;
        }
        if (any) return found;
    }
    if (seen > SETS_LIMIT) {
        for (size_t k = bit_count; k-- > 0;)
            if (reaches(c->groups, count, (all | c->near) & ~bits[k], need, best, &left)) all &= ~bits[k];
    }
    return all | c->near;
}

static int group_order(const void* a, const void* b) {
    const struct group *x = a, *y = b;
    if (x->tier != y->tier) return x->tier < y->tier ? -1 : 1;
    if (x->free != y->free) return x->free > y->free ? -1 : 1;
    if (x->nodes != y->nodes) return x->nodes < y->nodes ? -1 : 1;
    return 0;
}

// Sorts the groups and makes one of those that are alike. Returns how many remain.
static size_t merge(struct group* groups, size_t count) {
    size_t merged = 0;
    qsort(groups, count, sizeof *groups, group_order);
    for (size_t i = 0; i < count; i++) {
        if (merged && group_order(&groups[merged - 1], &groups[i]) == 0)
            groups[merged - 1].count += groups[i].count;
        else
            groups[merged++] = groups[i];
    }
    return merged;
}

static int largest_first(const void* a, const void* b) {
    const struct unit *x = a, *y = b;
    if (tier_of(x) != tier_of(y)) return tier_of(x) < tier_of(y) ? -1 : 1;
    if (x->free != y->free) return x->free > y->free ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

static int least_used_first(const void* a, const void* b) {
    const struct unit *x = a, *y = b;
    if (x->used != y->used) return x->used < y->used ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

// Takes `need` slots from units that come with the largest first: these as they come, then the smallest one that has
// all that is still missing, so that what is left over is least. With `to_the_last` that one too is emptied. Returns
// how many slots were taken.
static size_t cover(struct choice* c, struct unit* units, size_t count, size_t need, bool to_the_last) {
    size_t taken = 0;
    for (size_t i = 0; i < count && taken < need; i++) {
        size_t last = i;
        while (last + 1 < count && units[last + 1].free >= need - taken) last++;
        while (last > i && units[last - 1].free == units[last].free) last--;  // of equals the lowest
        struct unit* unit = units[i].free >= need - taken ? &units[last] : &units[i];
        size_t slots = !to_the_last && unit->free > need - taken ? need - taken : unit->free;
        take(c, unit, slots);
        taken += slots;
    }
    return taken;
}

static void pack(struct choice* c, size_t need) {
    for (size_t i = 0; i < c->unit_count; i++)
        c->groups[i] = (struct group){c->units[i].nodes, tier_of(&c->units[i]), c->units[i].free, 1};
    size_t groups = merge(c->groups, c->unit_count);
    uint64_t nodes = fewest_nodes(c, groups, need);

    size_t count = 0, at[WHOLE + 2] = {0}, slots[WHOLE + 1] = {0}, fresh;
    for (size_t i = 0; i < c->unit_count; i++) {
        if (c->units[i].nodes & nodes) c->units[count++] = c->units[i];
    }
    qsort(c->units, count, sizeof *c->units, largest_first);
    for (size_t i = 0; i < count; i++) {
        enum tier tier = tier_of(&c->units[i]);
        slots[tier] += c->units[i].free;
        for (size_t t = tier + 1; t <= WHOLE + 1; t++) at[t] = i + 1;
    }

    need -= cover(c, c->units, at[IN_USE], need < slots[OURS] ? need : slots[OURS], false);
    struct unit *in_use = c->units + at[IN_USE], *whole = c->units + at[WHOLE];
    size_t in_use_count = at[WHOLE] - at[IN_USE], whole_count = at[WHOLE + 1] - at[WHOLE];
    if (need <= slots[IN_USE]) {
        cover(c, in_use, in_use_count, need, false);
        return;
    }
    units_for(c->groups, groups, WHOLE, nodes, need - slots[IN_USE], &fresh);
    need -= cover(c, in_use, in_use_count, need > fresh ? need - fresh : 0, true);
    cover(c, whole, whole_count, need, false);
}

static void spread(struct choice* c, size_t need) {
    qsort(c->units, c->unit_count, sizeof *c->units, least_used_first);
    while (need) {
        // One round: a slot from every unit of which the container has the fewest, the least used first.
        uint32_t fewest = UINT32_MAX;
        size_t count = 0;
        for (size_t i = 0; i < c->unit_count; i++) {
            if (!c->units[i].free) continue;
            c->units[count++] = c->units[i];
            if (c->units[i].ours < fewest) fewest = c->units[i].ours;
        }
        c->unit_count = count;
        for (size_t start = 0, end; start < count && need; start = end) {
            size_t alike = 0;
            for (end = start; end < count && c->units[end].used == c->units[start].used; end++) {
                if (c->units[end].ours == fewest)
                    c->groups[alike++] = (struct group){c->units[end].nodes, IN_USE, 1, 1};
            }
            uint64_t nodes = UINT64_MAX;
            if (alike > need) nodes = fewest_nodes(c, merge(c->groups, alike), need);
            for (size_t i = start; i < end && need; i++) {
                if (c->units[i].ours != fewest || !(c->units[i].nodes & nodes)) continue;
                take(c, &c->units[i], 1);
                need--;
            }
        }
    }
}

static void first_of_all(struct choice* c, size_t need) {
    for (uint32_t slot = 0; need; slot++) {
        if (c->state[slot] != ALLOCATION_FREE) continue;
        c->state[slot] = ALLOCATION_OURS;
        c->chosen[c->count++] = slot;
        need--;
    }
}

ptrdiff_t allocation_choose(const struct allocation_table* table, enum allocation_policy policy, uint8_t* state,
                            size_t need, uint32_t* chosen) {
    struct choice c = {.table = table, .state = state, .chosen = chosen};
    size_t free_slots = 0;
    c.units = calloc(table->units + 1, sizeof *c.units);
    c.groups = calloc(table->units + 1, sizeof *c.groups);
    if (!c.units || !c.groups) {
        free(c.units);
        free(c.groups);
        return -1;
    }
    for (uint32_t u = 0; u < table->units; u++) {
        struct unit unit = {.nodes = table->nodes[u], .number = u, .next = table->first[u]};
        for (uint32_t m = table->first[u]; m < table->first[u + 1]; m++) {
            uint8_t s = state[table->members[m]];
            unit.free += s == ALLOCATION_FREE;
            unit.used += s == ALLOCATION_TAKEN;
            unit.ours += s == ALLOCATION_OURS;
        }
        if (unit.ours) c.near |= unit.nodes;
        if (unit.free) c.units[c.unit_count++] = unit;
        free_slots += unit.free;
    }
    if (need > free_slots) need = free_slots;
    if (policy == ALLOCATION_PACK) {
        pack(&c, need);
    } else if (policy == ALLOCATION_SPREAD) {
        spread(&c, need);
    } else {
        first_of_all(&c, need);
    }
    free(c.units);
    free(c.groups);
    return (ptrdiff_t)c.count;
}
