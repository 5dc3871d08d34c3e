"""What the grammar knows of the world: where each kind of thing can be, and what it can do there.

A *setting* is a sort of surroundings with the words for it; a *kind* is a group of classes that
may stand in the same sentences. Two classes may meet in a sentence if their kinds share a setting
and differ by at most one step in size, so that no whale comes into a kitchen and no ant carries a
castle. All words are this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ['CIRCUMSTANCES', 'KINDS', 'SETTINGS', 'Kind', 'Setting']

#: Light and weather, by where a setting is. The empty one leaves the place alone.
CIRCUMSTANCES: dict[str, tuple[str, ...]] = {
    'outside': (
        '',
        'at sunrise',
        'at sunset',
        'on a sunny day',
        'on a cloudy day',
        'on a foggy morning',
        'after the rain',
        'under a clear blue sky',
    ),
    'inside': (
        '',
        'in soft morning light',
        'in warm lamplight',
        'in bright daylight',
        'in the evening',
        'in dim light',
    ),
    'below': (
        '',
        'in clear blue water',
        'in green water',
        'in beams of sunlight',
        'in deep shadow',
    ),
    'above': ('', 'at sunrise', 'at sunset', 'on a clear day', 'among white clouds'),
}


@dataclass(frozen=True)
class Setting:
    """A sort of surroundings.

    Args:
        where: Key of `CIRCUMSTANCES`.
        places: The words for ``[somewhere]``.
    """

    where: str
    places: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A group of classes that may stand in the same sentences.

    Args:
        size: 0 (an ant), 1 (a cup), 2 (a dog), 3 (a car) or 4 (a house).
        settings: Keys of `SETTINGS`.
        actions: What such a thing may be doing, as present participles with their words.
        only: For some settings, the actions that replace ``actions`` there.
    """

    size: int
    settings: tuple[str, ...]
    actions: tuple[str, ...]
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _setting(where: str, places: str) -> Setting:
    return Setting(where, tuple(places.split('|')))


SETTINGS: dict[str, Setting] = {
    # inside
    'living room': _setting(
        'inside',
        'in a living room|on a soft rug|near a fireplace|in front of '
        'a window|beside a sofa|on a wooden floor',
    ),
    'bedroom': _setting(
        'inside',
        'in a bedroom|beside a bed|in a small attic room|in a tidy '
        'bedroom|in front of a white wall',
    ),
    'kitchen': _setting(
        'inside',
        'in a kitchen|on a kitchen counter|on a wooden kitchen table|in '
        'a farmhouse kitchen|beside a kitchen window',
    ),
    'table': _setting(
        'inside',
        'on a wooden table|on a white tablecloth|on a marble table|on a '
        'restaurant table|on a breakfast table',
    ),
    'bathroom': _setting(
        'inside', 'in a bathroom|on a tiled floor|in a white bathroom|in an old bathroom'
    ),
    'bathroom shelf': _setting(
        'inside', 'on a bathroom shelf|on a dressing table|beside a mirror|on a folded towel'
    ),
    'desk': _setting(
        'inside', 'on a desk|in an office|on a cluttered desk|on a school desk|on a pile of paper'
    ),
    'workshop': _setting(
        'inside', 'in a workshop|on a workbench|in a garage|in a tool shed|on a concrete floor'
    ),
    'laboratory': _setting(
        'inside', 'in a laboratory|on a laboratory bench|in a classroom|in a research institute'
    ),
    'museum': _setting(
        'inside', 'in a museum|in a display case|in an exhibition hall|on a museum pedestal'
    ),
    'hospital': _setting(
        'inside', "in a hospital room|in a clinic|in a first-aid station|on a doctor's table"
    ),
    'gym': _setting('inside', 'in a gym|in a sports hall|on a gym mat|in a fitness studio'),
    'stage': _setting(
        'inside',
        'on a stage|in a concert hall|in a music room|in a recording studio|in a rehearsal room',
    ),
    'theater': _setting('inside', 'in a theater|in an old opera house|in a school hall'),
    'wardrobe': _setting(
        'inside',
        'in a clothes shop|on a clothes rack|in a shop window|on a '
        'wooden bench|in a dressing room|in front of a mirror',
    ),
    'church': _setting('inside', 'in a church|in an old cathedral|in a chapel|in a stone hall'),
    'pantry': _setting('inside', 'on a shelf|in a cellar|in a storeroom|in a pantry'),
    'hall': _setting(
        'inside', 'in a train station|in a shopping mall|in an airport hall|in a hotel lobby'
    ),
    'warehouse': _setting('inside', 'in a warehouse|in a factory hall|at a loading dock'),
    'aquarium': _setting(
        'below', 'in an aquarium|in a large glass tank|behind the glass of an aquarium'
    ),
    # outside
    'garden': _setting(
        'outside',
        'in a garden|on a lawn|among flowers|beside a hedge|on a garden path|in a backyard',
    ),
    'leaf': _setting(
        'outside',
        'on a green leaf|on a flower|on a twig|on a mossy stone|on the '
        'bark of a tree|on a blade of grass',
    ),
    'park': _setting(
        'outside', 'in a park|under a tree|on a gravel path|beside a park bench|near a fountain'
    ),
    'street': _setting(
        'outside',
        'on a city street|at a street corner|on a cobbled street|on the '
        'pavement|in front of a brick wall|in a quiet side street',
    ),
    'road': _setting(
        'outside',
        'on a highway|on a country road|in a parking lot|at a crossroads|'
        'on a bridge|in front of a garage',
    ),
    'village': _setting(
        'outside',
        'on a hill|in a village|in an old town|at the edge of a forest|'
        'on a wide plain|beside a river',
    ),
    'city': _setting(
        'outside', 'in a city|in a busy square|between tall buildings|on a main street'
    ),
    'market': _setting(
        'outside', 'at a market|on a market stall|at a street fair|in a wooden stall'
    ),
    'picnic': _setting('outside', 'on a picnic blanket|on a garden table|on a terrace'),
    'farm': _setting(
        'outside', 'on a farm|in a farmyard|beside a barn|behind a wooden fence|in a stable yard'
    ),
    'field': _setting(
        'outside', 'in a wheat field|on a plowed field|in a harvested field|at the edge of a field'
    ),
    'meadow': _setting(
        'outside', 'in a meadow|on a green hillside|in tall grass|on a pasture|among wildflowers'
    ),
    'forest': _setting(
        'outside',
        'in a forest|on the forest floor|in a clearing|between pine '
        'trees|on a fallen tree|beside a forest stream',
    ),
    'tree': _setting(
        'outside', 'on a branch|in a tree|on a tree stump|in a blossoming bush|on a wooden fence'
    ),
    'jungle': _setting(
        'outside', 'in the jungle|in a rainforest|among tropical leaves|beside a jungle river'
    ),
    'bamboo': _setting(
        'outside', 'in a bamboo forest|among bamboo leaves|on a mossy rock|in a mountain forest'
    ),
    'savanna': _setting(
        'outside',
        'on the savanna|in dry grass|beside a waterhole|under an acacia tree|on a dusty plain',
    ),
    'outback': _setting(
        'outside', 'in the outback|in dry scrubland|under a eucalyptus tree|on red earth'
    ),
    'desert': _setting('outside', 'in a desert|on a sand dune|among dry rocks|on cracked earth'),
    'rocks': _setting(
        'outside', 'on a rock|on a sunny stone wall|on a sandy path|in dry leaves|between stones'
    ),
    'mountain': _setting(
        'outside', 'on a mountain slope|on a rocky ledge|in a mountain valley|above the tree line'
    ),
    'snow': _setting('outside', 'in the snow|on a snowy slope|on a frozen lake|in a snowy forest'),
    'arctic': _setting(
        'outside', 'on the tundra|on drifting ice|in the Arctic snow|on a snowy coast'
    ),
    'antarctic': _setting(
        'outside', 'on an ice floe|on a snowy shore|on Antarctic ice|on a rocky island'
    ),
    'river': _setting('outside', 'in a river|on a river bank|in shallow water|beside a stream'),
    'pond': _setting(
        'outside', 'in a pond|at the edge of a lake|in a marsh|among reeds|on a calm lake'
    ),
    'beach': _setting(
        'outside', 'on a beach|on wet sand|on rocks by the sea|at the edge of the waves|among dunes'
    ),
    'sea': _setting(
        'outside', 'on the open sea|in a bay|on calm water|in high waves|near a rocky coast'
    ),
    'harbor': _setting('outside', 'in a harbor|at a pier|in a marina|at an old dock'),
    'shore': _setting('outside', 'on the coast|at a lake|at the mouth of a river|in a quiet bay'),
    'scenery': _setting(
        'outside',
        'in the distance|beyond a green plain|above a forest|behind a '
        'small village|under a wide sky',
    ),
    'construction site': _setting(
        'outside', 'at a construction site|beside a scaffold|on a gravel lot'
    ),
    'sports field': _setting(
        'outside', 'on a sports field|on a lawn|in a stadium|on a playing field'
    ),
    'racetrack': _setting('outside', 'on a racetrack|at the starting line|in a pit lane'),
    'playground': _setting('outside', 'on a playground|at a fairground|in an amusement park'),
    'pool': _setting('outside', 'beside a swimming pool|at the edge of a pool|on a deck chair'),
    'campsite': _setting(
        'outside', 'at a campsite|beside a campfire|in a forest clearing|on a mountain meadow'
    ),
    'training ground': _setting(
        'outside', 'on a training ground|on a muddy track|in front of a bunker|at a parade'
    ),
    'castle': _setting('outside', 'in a castle courtyard|on a city wall|in front of a fortress'),
    'railway': _setting(
        'outside', 'on a railway track|at a station platform|on a railway bridge|in a rail yard'
    ),
    'airfield': _setting('outside', 'on a runway|at an airport|in front of a hangar'),
    'sky': _setting(
        'above', 'in the sky|high above the ground|above a city|above the sea|above mountains'
    ),
    # under water
    'reef': _setting(
        'below',
        'on a coral reef|under water|on the sandy sea floor|between '
        'underwater rocks|near a sunken ship',
    ),
    'ocean': _setting('below', 'in the ocean|deep under water|near the surface of the sea'),
}


def _kind(size: int, settings: str, actions: str, **only: str) -> Kind:
    return Kind(
        size,
        tuple(settings.split('|')),
        tuple(actions.split('|')),
        {name.replace('_', ' '): tuple(words.split('|')) for name, words in only.items()},
    )


_DISPLAY = 'standing|being displayed|gleaming'
_WORN = 'hanging|lying folded|being worn|being displayed'
_BUILDING = 'standing|towering|being painted|being restored|reflecting the light'
_DRIVE = 'driving|standing|waiting|being parked|being repaired'

KINDS: dict[str, Kind] = {
    # animals
    'dog': _kind(
        2,
        'living room|garden|park|street|meadow|forest|beach|snow|river',
        'running|sitting|sleeping|barking|playing|jumping|sniffing the ground',
        river='swimming|drinking|splashing|wading',
        living_room='sitting|sleeping|lying down|playing|yawning',
    ),
    'cat': _kind(
        2,
        'living room|bedroom|garden|street|tree',
        'sitting|sleeping|stretching|playing|walking|washing itself',
        tree='climbing|sitting|sleeping|looking down',
    ),
    'wild canine': _kind(
        2,
        'forest|meadow|desert|snow',
        'walking|running|howling|resting|hunting|sniffing the ground',
    ),
    'savanna dog': _kind(2, 'savanna', 'walking|running|resting|hunting|sniffing the ground'),
    'outback dog': _kind(2, 'outback|desert', 'walking|running|resting|howling'),
    'arctic animal': _kind(2, 'arctic', 'walking|resting|hunting|looking around|sleeping'),
    'savanna cat': _kind(3, 'savanna', 'walking|resting|sleeping|yawning|running|hunting'),
    'jungle cat': _kind(3, 'jungle', 'walking|resting|sleeping|yawning|drinking|hunting'),
    'mountain cat': _kind(3, 'mountain|forest|snow', 'walking|resting|climbing|jumping|hunting'),
    'bear': _kind(
        3,
        'forest|river|meadow',
        'walking|standing|resting|eating|climbing',
        river='fishing|standing|drinking|wading',
    ),
    'panda': _kind(2, 'bamboo', 'eating|sitting|sleeping|climbing|playing'),
    'savanna animal': _kind(3, 'savanna', 'grazing|standing|running|drinking|resting'),
    'mountain animal': _kind(
        3, 'mountain|forest|meadow', 'grazing|standing|walking|resting|running'
    ),
    'elephant': _kind(
        4,
        'savanna|jungle|river',
        'walking|standing|eating|throwing dust',
        river='bathing|drinking|splashing',
    ),
    'farm animal': _kind(3, 'farm|meadow|field', 'grazing|standing|walking|resting|eating hay'),
    'camel': _kind(3, 'desert|savanna', 'walking|standing|resting|sitting'),
    'small mammal': _kind(
        2, 'forest|meadow|garden', 'sitting|eating|running|digging|looking around|sleeping'
    ),
    'savanna mammal': _kind(1, 'savanna|desert', 'standing upright|running|digging|looking around'),
    'marsupial': _kind(2, 'outback', 'sitting|eating|sleeping|looking around|walking'),
    'river mammal': _kind(2, 'river|pond', 'swimming|diving|eating|resting'),
    'pet': _kind(1, 'living room|garden|bedroom', 'sitting|eating|sleeping|running|looking around'),
    'primate': _kind(2, 'jungle', 'climbing|sitting|eating|swinging|playing|resting'),
    'whale': _kind(4, 'ocean|sea', 'swimming|diving', sea='swimming|diving|surfacing'),
    'sea lion': _kind(3, 'beach|sea', 'resting|sleeping|calling', sea='swimming|diving'),
    'songbird': _kind(
        1,
        'tree|garden|snow',
        'sitting|singing|eating seeds|hopping|preening',
        tree='sitting|singing|building a nest|preening',
    ),
    'water bird': _kind(
        2,
        'pond|river|beach',
        'standing|wading|preening|spreading its wings',
        pond='swimming|wading|preening|fishing',
    ),
    'penguin': _kind(2, 'antarctic', 'standing|walking|sliding|preening|calling'),
    'bird of prey': _kind(
        2,
        'tree|mountain|sky',
        'sitting|watching|spreading its wings',
        sky='flying|gliding|circling',
    ),
    'poultry': _kind(
        2, 'farm|garden|meadow', 'walking|standing|eating grain|scratching the ground|crowing'
    ),
    'game bird': _kind(2, 'meadow|forest|field|snow', 'walking|standing|hiding|looking around'),
    'savanna bird': _kind(3, 'savanna', 'running|standing|walking|looking around'),
    'tropical bird': _kind(
        2, 'jungle', 'sitting|eating fruit|preening|spreading its wings|calling|flying'
    ),
    'fish': _kind(
        1,
        'river|pond|aquarium',
        'swimming|hiding',
        river='swimming|jumping',
        aquarium='swimming|resting|hiding',
        pond='swimming|coming to the surface',
    ),
    'sea fish': _kind(
        1, 'reef|ocean|aquarium', 'swimming|hiding|turning', ocean='swimming|diving|turning'
    ),
    'shark': _kind(3, 'ocean|reef|aquarium', 'swimming|turning|gliding|hunting'),
    'amphibian': _kind(1, 'pond|leaf|rocks|river', 'sitting|crawling|resting|hiding'),
    'turtle': _kind(1, 'pond|garden|rocks', 'crawling|resting|eating|basking'),
    'sea turtle': _kind(2, 'reef|ocean|beach', 'swimming|gliding|diving', beach='crawling|resting'),
    'lizard': _kind(1, 'rocks|tree|desert|jungle', 'sitting|crawling|basking|climbing|hiding'),
    'crocodile': _kind(
        3,
        'river|jungle|savanna',
        'resting|basking|waiting|opening its mouth',
        river='swimming|waiting|diving',
    ),
    'snake': _kind(1, 'rocks|desert|forest|jungle', 'crawling|basking|coiling|hiding|resting'),
    'dinosaur': _kind(
        4,
        'museum|jungle|savanna',
        'walking|standing|eating leaves|roaring',
        museum='standing|being displayed',
    ),
    'fossil': _kind(
        1,
        'museum|laboratory|rocks',
        'lying|being displayed|being studied',
        rocks='lying|being uncovered',
    ),
    'insect': _kind(0, 'leaf|garden|rocks', 'sitting|crawling|feeding|resting|climbing'),
    'spider': _kind(0, 'leaf|rocks|tree', 'crawling|waiting|spinning a web|resting'),
    'butterfly': _kind(0, 'leaf|garden|meadow', 'sitting|fluttering|feeding|opening its wings'),
    'snail': _kind(0, 'leaf|garden|rocks', 'crawling|resting|feeding|climbing'),
    'worm': _kind(
        0, 'laboratory|rocks|river', 'crawling|moving', laboratory='lying|being studied|moving'
    ),
    'sea creature': _kind(1, 'reef|aquarium|ocean', 'resting|drifting|feeding|hiding'),
    'shellfish': _kind(1, 'reef|aquarium|beach', 'crawling|resting|feeding|hiding'),
    # plants and what grows
    'flower': _kind(1, 'garden|meadow|field', 'blooming|growing|swaying in the wind|opening'),
    'fungus': _kind(0, 'forest|leaf', 'growing|standing|glistening'),
    'seed': _kind(
        0,
        'forest|tree|leaf|table',
        'lying|ripening|glistening',
        table='lying|casting a shadow',
        tree='hanging|growing|ripening',
    ),
    'crop': _kind(
        2, 'field|farm|market', 'drying|lying|being harvested', market='lying|being sold'
    ),
    'fruit': _kind(
        1,
        'kitchen|table|market|picnic',
        'lying|ripening|being sliced|glistening',
        market='lying|being sold|glistening',
    ),
    'vegetable': _kind(
        1,
        'kitchen|table|market|picnic',
        'lying|being washed|being chopped',
        market='lying|being sold|glistening',
    ),
    'dish': _kind(
        1, 'kitchen|table|picnic', 'steaming|being served|being prepared|waiting to be eaten'
    ),
    'dessert': _kind(
        1, 'table|picnic|kitchen', 'being served|being decorated|waiting to be eaten|melting'
    ),
    'drink': _kind(1, 'table|picnic|kitchen', 'being poured|being served|sparkling|cooling'),
    # nature's large forms
    'landscape': _kind(4, 'scenery', 'lying|shining|disappearing in mist|glowing'),
    'reef': _kind(4, 'reef|ocean', 'growing|glowing|swarming with life'),
    'web': _kind(1, 'tree|garden|leaf', 'hanging|glistening|trembling in the wind'),
    # vehicles
    'car': _kind(3, 'street|road|city|village', _DRIVE + '|turning'),
    'race car': _kind(3, 'racetrack', 'racing|overtaking|skidding|standing|being repaired'),
    'camper': _kind(3, 'campsite|road|beach', 'standing|arriving|being repaired|waiting'),
    'bicycle': _kind(
        2, 'street|park|road', 'leaning against a wall|rolling|standing|being repaired'
    ),
    'cart': _kind(2, 'farm|street|market|village', 'standing|being pushed|rolling|being loaded'),
    'snow vehicle': _kind(3, 'snow', 'driving|sliding|standing|racing|turning'),
    'train': _kind(4, 'railway', 'arriving|departing|standing|speeding by|waiting'),
    'aircraft': _kind(
        4,
        'sky|airfield',
        'flying|climbing|circling|gliding',
        airfield='landing|standing|taking off|being refueled',
    ),
    'rocket': _kind(
        3,
        'sky|airfield',
        'flying|rising|climbing',
        airfield='standing|being launched|being inspected',
    ),
    'parachute': _kind(3, 'sky', 'drifting|opening|coming down|gliding'),
    'boat': _kind(
        3,
        'sea|harbor|pond',
        'sailing|floating|drifting|turning',
        harbor='lying at anchor|arriving|being loaded|being painted',
    ),
    'ship': _kind(
        4,
        'sea|harbor',
        'sailing|cruising|turning|drifting',
        harbor='lying at anchor|arriving|being loaded|being painted',
    ),
    'shipwreck': _kind(4, 'reef|beach', 'rusting|lying on its side|breaking apart|decaying'),
    'military vehicle': _kind(
        3, 'training ground', 'driving|standing|turning|waiting|being repaired'
    ),
    'farm machine': _kind(3, 'field|farm', 'working|standing|turning|being repaired|raising dust'),
    'industrial vehicle': _kind(
        3, 'warehouse|construction site', 'working|lifting a load|standing|turning'
    ),
    'car part': _kind(1, 'workshop', 'lying|being repaired|gleaming|being polished'),
    # what is built
    'building': _kind(4, 'village|scenery', _BUILDING),
    'farm building': _kind(4, 'farm|meadow|field|village', _BUILDING),
    'city building': _kind(4, 'city|village', _BUILDING),
    'shop': _kind(
        4, 'city|street', 'opening|welcoming customers|closing for the night|being painted|standing'
    ),
    'building part': _kind(
        4, 'village|city', 'gleaming|being repaired|towering|reflecting the light'
    ),
    'monument': _kind(
        4, 'city|village|park', 'standing|towering|casting a long shadow|being restored'
    ),
    'fence': _kind(
        3, 'farm|garden|meadow|village', 'standing|leaning|running along a path|being painted'
    ),
    'bridge': _kind(
        4, 'scenery|village|shore', 'standing|spanning the water|gleaming|being repaired'
    ),
    'waterside': _kind(4, 'shore|sea', 'standing|stretching into the water|being repaired'),
    'tent': _kind(
        3, 'campsite|meadow|mountain|desert', 'standing|swaying in the wind|being put up'
    ),
    'church furniture': _kind(3, 'church', _DISPLAY),
    'theater fitting': _kind(4, 'theater', 'waiting for the show|shining|being lit'),
    'street item': _kind(2, 'street|city|road', 'standing|rusting|being repaired|being painted'),
    'machine': _kind(3, 'hall', 'standing|blinking|being used|being repaired'),
    'playground': _kind(3, 'playground|park', 'turning|standing|moving in the wind|being painted'),
    'outdoor furniture': _kind(
        2, 'park|garden|street', 'standing|waiting for visitors|being painted'
    ),
    # at home
    'furniture': _kind(
        3, 'living room|bedroom', 'standing|being polished|being moved|gathering dust'
    ),
    'chair': _kind(
        2, 'living room|bedroom|hall', 'standing|being repaired|gathering dust|being moved'
    ),
    'room fitting': _kind(
        2, 'living room|bedroom|hall', 'being cleaned|being repaired|catching the light'
    ),
    'appliance': _kind(
        2, 'living room|workshop|bedroom', 'running|standing|being repaired|humming'
    ),
    'kitchen appliance': _kind(2, 'kitchen', 'running|standing|being cleaned|humming|gleaming'),
    'cookware': _kind(1, 'kitchen|table', 'lying|standing|being washed|gleaming'),
    'tableware': _kind(1, 'kitchen|table|picnic', 'standing|being filled|gleaming|being washed'),
    'bathroom item': _kind(2, 'bathroom', 'standing|gleaming|being cleaned|being installed'),
    'toiletry': _kind(1, 'bathroom shelf', 'standing|lying|gleaming|being used'),
    'cleaning item': _kind(
        1, 'kitchen|bathroom|living room', 'standing|leaning against a wall|being used|drying'
    ),
    'textile': _kind(
        2, 'bedroom|living room|market', 'lying|lying folded|being spread out|hanging'
    ),
    'lamp': _kind(1, 'living room|bedroom|desk', 'glowing|standing|flickering|casting a shadow'),
    'clock': _kind(
        1, 'living room|desk|bedroom|museum', 'ticking|standing|showing the time|being repaired'
    ),
    'decor': _kind(1, 'living room|garden|table', 'standing|being decorated|casting a shadow'),
    'toy': _kind(
        1, 'living room|bedroom|playground', 'lying|waiting to be played with|being played with'
    ),
    'baby item': _kind(1, 'bedroom|living room', 'lying|being washed|drying'),
    'container': _kind(2, 'pantry|warehouse|market', 'standing|being opened|being filled'),
    'farm container': _kind(2, 'farm|pantry|market', 'standing|being filled|being carried|rusting'),
    'bag': _kind(
        1, 'living room|street|desk|campsite', 'standing|lying|being packed|being carried'
    ),
    'camping item': _kind(2, 'campsite|bedroom', 'lying|being rolled up|drying'),
    # what is worn
    'clothing': _kind(2, 'wardrobe|bedroom|market', _WORN),
    'swimwear': _kind(1, 'pool|beach|wardrobe', 'lying|drying|being displayed|being worn'),
    'shoe': _kind(1, 'wardrobe|market|bedroom', 'standing|lying|being polished|being displayed'),
    'accessory': _kind(1, 'wardrobe|market|bedroom', 'lying|being worn|being displayed|hanging'),
    'armor': _kind(
        2, 'museum|castle|training ground', 'lying|being polished|being displayed|being worn'
    ),
    # what is used
    'instrument': _kind(
        1,
        'stage|living room|market',
        'lying|being played|being tuned|gleaming',
        market='lying|being sold|gleaming',
    ),
    'large instrument': _kind(3, 'stage|living room', 'standing|being played|being tuned|gleaming'),
    'sports item': _kind(
        1,
        'sports field|park|gym',
        'lying|rolling|being thrown|bouncing',
        gym='lying|rolling|being picked up',
    ),
    'sports tool': _kind(
        1, 'sports field|gym|snow', 'lying|leaning against a wall|being carried|being used'
    ),
    'fishing item': _kind(1, 'pond|river|harbor', 'lying|being used|being repaired'),
    'gym apparatus': _kind(2, 'gym', 'standing|being used|being set up|gleaming'),
    'water sport item': _kind(1, 'pool|beach', 'lying|drying|being used'),
    'tool': _kind(
        1, 'workshop|construction site|garden', 'lying|leaning against a wall|being used|rusting'
    ),
    'hardware': _kind(0, 'workshop|desk', 'lying|gleaming|rusting|being polished'),
    'workshop machine': _kind(2, 'workshop', 'turning|standing|being used|being repaired'),
    'desk item': _kind(1, 'desk|living room', 'lying|being used|gathering dust'),
    'electronics': _kind(
        1, 'desk|living room', 'standing|glowing|being used|being repaired|gathering dust'
    ),
    'scientific': _kind(
        1, 'laboratory|museum|desk', 'standing|being used|being displayed|being calibrated'
    ),
    'medical item': _kind(1, 'hospital', 'lying|being used|being cleaned|being prepared'),
    'weapon': _kind(1, 'museum', 'lying|being displayed|being cleaned|hanging'),
    'old weapon': _kind(3, 'castle|museum', _DISPLAY),
    # people
    'ballplayer': _kind(
        3, 'sports field', 'running|throwing a ball|catching a ball|standing|jumping'
    ),
    'bridegroom': _kind(3, 'church|garden|park', 'smiling|standing|dancing|waiting|laughing'),
    'diver': _kind(3, 'reef|ocean', 'swimming|diving|taking pictures|exploring'),
}
