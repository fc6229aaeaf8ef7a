// Queries with passages that look alike and answer differently.

export const EXAMPLES = [
  {
    name: "Stale bread",
    query: "How do I keep bread from going stale?",
    passages: [
      "Fresh bread is sold at the corner bakery every morning from six, except on Sundays.",
      "A bread knife has a serrated edge, so that it cuts the crust without pressing the crumb.",
      "The price of bread rose by nine percent last year.",
      "Flour, water, salt and time are all that a good loaf needs.",
      "Slice the loaf and freeze it on the first day; toasted from the freezer, each slice tastes fresh.",
      "Cut flowers stay fresh for a week when the water is changed every other day.",
      "Store a loaf in a linen bag or a bread box; in the refrigerator bread goes stale faster.",
      "Stale bread makes good croutons and bread pudding.",
    ],
  },
  {
    name: "The first program",
    query: "Who wrote the first computer program?",
    passages: [
      "The first computer mouse was carved from wood by Bill English in 1964.",
      "Charles Babbage designed the Analytical Engine, a mechanical computer, in 1837.",
      "A computer program is a sequence of instructions that a computer can execute.",
      "Grace Hopper’s team found a moth in the Mark II, the first computer bug on record.",
      "In 1843 Ada Lovelace published an algorithm for the Analytical Engine, which is regarded as the first computer program.",
      "The first program of the evening is a film about computers.",
    ],
  },
  {
    name: "茶: for a multilingual model",
    query: "绿茶应该用多少度的水冲泡？",
    passages: [
      "绿茶产于浙江、安徽和江苏等地，春季采摘的最为名贵。",
      "水在标准大气压下的沸点是一百摄氏度。",
      "冲泡绿茶以八十度左右的水为宜，水温过高会把嫩叶烫熟，使茶汤发黄、味道苦涩。",
      "红茶经过完全发酵，适合用刚烧开的水冲泡。",
      "喝茶有助于提神，但睡前不宜饮用。",
    ],
  },
  {
    name: "قهوة: for a multilingual model",
    query: "كيف أحافظ على نكهة القهوة بعد طحنها؟",
    passages: [
      "تُزرع القهوة في اليمن وإثيوبيا والبرازيل على مرتفعات باردة.",
      "احفظ القهوة المطحونة في وعاء محكم الإغلاق بعيدًا عن الضوء والحرارة، واستعملها خلال أسبوعين.",
      "سعر القهوة ارتفع هذا العام بسبب قلة الأمطار.",
      "طحن الحبوب قبل التحضير مباشرة أفضل ما يحافظ على النكهة، لأن الهواء يُفسد الزيوت العطرية.",
      "تحتوي القهوة على الكافيين الذي ينبّه الجسم.",
    ],
  },
];
